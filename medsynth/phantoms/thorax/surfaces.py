"""Signed distances to the organs of a thorax in mm: negative inside, exact at the surface, to first order around it."""

from __future__ import annotations

import numpy as np

from medsynth.phantoms.thorax.anatomy import Anatomy, Capsule, cage, spine_line


def fraction(distance: np.ndarray, edge: float) -> np.ndarray:
    """Share of a voxel of size `edge` inside a surface at the given signed distance."""
    out = distance * np.float32(-1 / edge)
    out += np.float32(0.5)
    return np.clip(out, 0, 1, out=out)


def blend(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Smooth minimum of two distances: fillets the crease where two surfaces meet."""
    h = np.abs(a - b)
    np.subtract(np.float32(width), h, out=h)
    np.maximum(h, 0, out=h)
    h *= h
    h *= np.float32(0.25 / width)
    return np.minimum(a, b) - h


def cage_distance(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to the inside of the rib cage, a stack of superellipses."""
    a, b, cy = cage(anatomy, z)
    p = anatomy.squareness
    q = np.abs(x / a) ** p + np.abs((y - cy) / b) ** p
    q -= 1
    q *= (np.minimum(a, b) / p).astype(np.float32)
    return q


def diaphragm(anatomy: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height of the diaphragm over (x, y): two domes that fall off to the costophrenic angles."""
    side = np.tanh(x / 18)
    off = (np.abs(x) - 0.46 * anatomy.width) / (0.62 * anatomy.width)
    # towards the heart the dome stays high
    r = np.where(off < 0, 0.55 * off, off) ** 2 + ((y + 12) / (1.02 * anatomy.depth)) ** 2
    return anatomy.dome - anatomy.dome_step * (0.5 + 0.5 * side) - anatomy.dome_fall * r**1.2


def ellipsoid_distance(centre: np.ndarray, matrix: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to an ellipsoid |M (r - c)| = 1."""
    px, py, pz = (v - np.float32(c) for v, c in zip((x, y, z), centre, strict=True))
    total = np.float32(-1)
    for row in matrix.astype(np.float32):
        u = (row[0] * px + row[2] * pz) + row[1] * py
        u *= u
        total = np.add(total, u, out=u)
    total *= np.float32(0.5 / np.abs(matrix).max())
    return total


def capsule_distance(capsule: Capsule, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to a capsule."""
    start, end, radius = capsule
    d = end - start
    u = (d / float(d @ d)).astype(np.float32)
    d = d.astype(np.float32)
    px, py, pz = (v - np.float32(s) for v, s in zip((x, y, z), start, strict=True))
    t = (px * u[0] + pz * u[2]) + py * u[1]
    np.clip(t, 0, 1, out=t)
    total = np.square(px - t * d[0])
    total += np.square(py - t * d[1])
    total += np.square(pz - t * d[2])
    np.sqrt(total, out=total)
    total -= np.float32(radius)
    return total


def heart_distance(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to the outside of the heart."""
    first, second = (ellipsoid_distance(c, m, x, y, z) for c, m in anatomy.chambers)
    return blend(first, second, 8.0)


def mediastinum_distance(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to all that lies between the lungs: heart, great vessels, airways, spine and the fat that holds them."""
    distance = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32(60))
    reach = np.array([75.0, np.inf, np.inf])
    box = _box(-reach, reach, x, y, z)
    if box is not None:
        index, near = box
        distance[index] = _midline_distance(anatomy, *near)
    low, high = zip(*(ellipsoid_box(c, m, 20.0) for c, m in anatomy.chambers), strict=True)
    box = _box(np.min(low, axis=0), np.max(high, axis=0), x, y, z)
    if box is not None:
        index, near = box
        heart = heart_distance(anatomy, *near)
        heart -= np.float32(0.35 * anatomy.mediastinal_fat)
        distance[index] = blend(distance[index], heart, 14.0)
    for capsule in anatomy.vessels + anatomy.airways[:5]:
        box = capsule_box(capsule, 14.0, x, y, z)
        if box is not None:
            index, near = box
            tube = capsule_distance(capsule, *near)
            tube -= np.float32(1.5)
            distance[index] = blend(distance[index], tube, 8.0)
    return distance


def _midline_distance(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to the sheet from sternum to spine and to the spine with its muscles."""
    sx, sy = spine_line(anatomy, z)
    bend = sx * np.clip((y + anatomy.depth) / (2 * anatomy.depth), 0, 1)
    # wide above the arch and along the spine, thin in front at the anterior junction
    half = 2 + 0.5 * anatomy.mediastinal_fat + 19 / (1 + np.exp(-(z - 48) / 14)) + 9 * np.exp(-(((y - 10) / 30) ** 2))
    # behind the vertebral bodies the lungs stay lateral to the transverse processes
    behind = y - sy
    front = np.square(0.85 * np.minimum(behind, 0))
    spine = np.sqrt(np.square(x - sx) + front)
    spine -= 19.5 + 0.4 * np.clip(behind, 0, 40)
    return np.minimum(np.abs(x - bend) - half, spine, out=spine)


def lung_distance(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance to the lungs: inside the cage, above the diaphragm, outside the mediastinum."""
    distance = cage_distance(anatomy, x, y, z)
    centre = mediastinum_distance(anatomy, x, y, z)
    np.maximum(distance, np.negative(centre, out=centre), out=distance)
    return np.maximum(distance, (diaphragm(anatomy, x, y) - z) * np.float32(0.85), out=distance)


def capsule_box(capsule: Capsule, margin: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple | None:
    """Index and coordinates of the part of a grid near a capsule; None if there is none."""
    start, end, radius = capsule
    return _box(np.minimum(start, end) - radius - margin, np.maximum(start, end) + radius + margin, x, y, z)


def ellipsoid_box(centre: np.ndarray, matrix: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the box around an ellipsoid, widened by a margin."""
    reach = np.linalg.norm(np.linalg.inv(matrix), axis=1) + margin
    return centre - reach, centre + reach


def _box(low: np.ndarray, high: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple | None:
    """Index and coordinates of the part of an open (z, y, x) grid inside a box; None if there is none.

    Flat points and rotated slices are not cut, only skipped where all of them lie above or below.
    """
    if z.ndim < 3:
        return None if z.min() > high[2] or z.max() < low[2] else (..., (x, y, z))
    parts = []
    for axis, v in ((2, z), (1, y), (0, x)):
        inside = np.flatnonzero((v.ravel() > low[axis]) & (v.ravel() < high[axis]))
        if not len(inside):
            return None
        parts.append(slice(inside[0], inside[-1] + 1))
    k, j, i = parts
    return (k, j, i), (x[..., i], y[:, j], z[k])
