"""The frontal radiograph of one patient: line integrals of attenuation from front to back, then the detector and its display."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medsynth.phantoms.thorax import anatomy as an
from medsynth.phantoms.thorax import surfaces
from medsynth.phantoms.thorax.anatomy import Anatomy
from medsynth.phantoms.thorax.pathology import Lesion, consolidation, effusion, nodule
from medsynth.phantoms.thorax.sampling import splat
from medsynth.phantoms.thorax.scanner import Scan, Scanner
from medsynth.phantoms.thorax.surfaces import fraction

# linear attenuation of water at about 70 keV, per mm
WATER = 0.019
# a nodule is denser than water
CALCIFIED = np.float32(1.13)


def xray(anatomy: Anatomy, lesion: Lesion, scan: Scan, scanner: Scanner, size: int, rng: np.random.Generator) -> np.ndarray:
    """Frontal radiograph (size, size) in 0..1, dense tissue white: Beer-Lambert with scatter, then a display curve."""
    pixel = scanner.field["xray"] / size
    u = ((np.arange(size) - (size - 1) / 2) * pixel / scan.scale).astype(np.float32)
    x = u + np.float32(scan.shift[0] + anatomy.habit[0])
    z = -u - np.float32(18 + scan.shift[2] + anatomy.habit[2])
    path = _soft_path(anatomy, lesion, x, z, pixel)
    path += _spine_path(anatomy, x, z)
    for cloud, sigma in _vessel_clouds(anatomy):
        path += ndimage.gaussian_filter(_project(cloud, x, z), sigma / pixel, truncate=3)
    # seen edge on, ribs harden the beam: their path saturates
    ribs = ndimage.gaussian_filter(_project(_rib_cloud(anatomy, size), x, z), 0.8 / pixel, truncate=3)
    path += 30 * (1 - np.exp(ribs / -30))
    path = _roll(path, scan.roll)
    return _expose(np.clip(path, 0, None), scan, scanner, pixel, rng)


def _soft_path(anatomy: Anatomy, lesion: Lesion, x: np.ndarray, z: np.ndarray, pixel: float) -> np.ndarray:
    """Water-equivalent path through body and air spaces in mm, (h, w)."""
    body = _body_path(anatomy, x[None, :], z[:, None])
    rows = []
    depth = anatomy.depth + 12
    count = max(32, int(16 * np.sqrt(len(x) / 16)) // 4 * 4)
    step = 2 * depth / count
    y = ((np.arange(count) + 0.5) * step - depth).astype(np.float32)[None, :, None]
    edge = max(pixel, 0.8 * step)
    # blocks that stay in the cache
    wide, block = x[None, None, :], max(4, 160_000 // (len(x) * count))
    for start in range(0, len(z), block):
        zz = z[start : start + block, None, None]
        rows.append(_air(anatomy, lesion, wide, y, zz, edge).sum(1) * np.float32(step))
    air = np.concatenate(rows)
    return np.maximum(body - air, 0.15 * body)


def _air(anatomy: Anatomy, lesion: Lesion, x: np.ndarray, y: np.ndarray, z: np.ndarray, edge: float) -> np.ndarray:
    """Air content 0..1 of the chest, (rows, depth, columns)."""
    air = fraction(surfaces.lung_distance(anatomy, x, y, z), edge)
    if lesion.finding == "effusion":
        air *= 1 - effusion(lesion, anatomy, x, y, z, posture="erect", edge=edge)
    elif lesion.finding in ("consolidation", "nodule"):
        reach = 1.9 * (lesion.extent if lesion.finding == "consolidation" else np.full(3, lesion.radius))
        rows, deep, cols = (
            np.flatnonzero(np.abs(v.ravel() - c) < r) for v, c, r in zip((z, y, x), lesion.centre[::-1], reach[::-1], strict=True)
        )
        if len(rows) and len(deep) and len(cols):
            box = np.ix_(rows, deep, cols)
            near = (x[..., cols], y[:, deep], z[rows])
            solid = (
                consolidation(lesion, anatomy, *near)
                if lesion.finding == "consolidation"
                else CALCIFIED * nodule(lesion, *near, edge)
            )
            air[box] *= 1 - solid
    air *= np.float32(anatomy.aeration)
    for capsule in anatomy.airways[:3]:
        box = surfaces.capsule_box(capsule, edge, x, y, z)
        if box is not None:
            index, near = box
            air[index] = np.maximum(air[index], fraction(surfaces.capsule_distance(capsule, *near), edge))
    return air


def _body_path(anatomy: Anatomy, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Water-equivalent thickness of the body without its lungs, (h, w): trunk, neck, shoulders, arms, breasts."""
    fat, muscle = anatomy.fat, anatomy.muscle
    up = np.clip((z - anatomy.apex + 60) / 90, 0, 1)
    half = anatomy.width + 9 + muscle + 0.9 * fat - 95 * up**1.6 + 4 * np.sin(z / 70 + anatomy.wall[2, 0])
    thick = (anatomy.depth + 9 + 0.5 * muscle + 0.55 * fat) * (1 - 0.38 * up)
    trunk = thick * np.clip(1 - np.abs(x / half) ** 2.6, 0, None) ** (1 / 2.2)
    neck = 62 * np.sqrt(np.clip(1 - (x / (58 + 0.3 * fat)) ** 2, 0, None)) * (z > anatomy.apex - 40)
    out = np.maximum(trunk, neck)
    shoulder = anatomy.width + 18 + muscle
    for side in (-1, 1):
        joint = np.array([side * (shoulder + 6), anatomy.apex - 14 + 4 * anatomy.wall[2, 1 + (side > 0)]])
        elbow = np.array([side * (shoulder + 68 + 8 * anatomy.wall[2, 3]), anatomy.apex - 215])
        root = np.array([side * 42, anatomy.apex + 10])
        out = np.maximum(out, _limb(x, z, root, joint, 38 + 0.3 * fat, 46 + 0.4 * fat))
        out = np.maximum(out, _limb(x, z, joint, elbow, 46 + 0.4 * fat, 38 + 0.4 * fat))
    path = 2 * out
    if anatomy.breast:
        for side in (-1, 1):
            r = 40 + 0.5 * anatomy.breast
            dz = z - (-72 - 0.3 * anatomy.breast)
            # flat above, sharp below: the inframammary fold
            q = ((x - side * 0.60 * anatomy.width) / r) ** 2 + (dz / np.where(dz < 0, 0.62 * r, 1.25 * r)) ** 2
            path = path + anatomy.breast * 0.55 * np.clip(1 - q, 0, None) ** 0.6
    # fat attenuates less than water
    return (path - 0.35 * fat * (path > 0)).astype(np.float32)


def _limb(x: np.ndarray, z: np.ndarray, p: np.ndarray, q: np.ndarray, r0: float, r1: float) -> np.ndarray:
    d = q - p
    t = np.clip(((x - p[0]) * d[0] + (z - p[1]) * d[1]) / (d @ d), 0, 1)
    r = r0 + (r1 - r0) * t
    return 1.4 * np.sqrt(np.clip(r * r - (x - p[0] - t * d[0]) ** 2 - (z - p[1] - t * d[1]) ** 2, 0, None))


def _spine_path(anatomy: Anatomy, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Extra water-equivalent path in mm of vertebrae, sternum and the stomach's missing tissue, (h, w)."""
    sx, _ = an.spine_line(anatomy, z)
    pitch = (anatomy.apex - anatomy.dome + 75) / 12 * 0.98
    phase = (z - anatomy.apex) / pitch
    down = np.clip((anatomy.apex - z) / 200, 0, 1.3)
    half = (12.5 + 5.5 * down)[:, None]
    q = (x[None, :] - sx[:, None]) / half
    disc = (0.5 + 0.5 * np.cos(2 * np.pi * phase))[:, None] ** 6
    body = np.sqrt(np.clip(1 - np.abs(q) ** 3, 0, None)) * (1 - 0.75 * disc)
    rim = np.exp(-(((np.abs(q) - 0.93) / 0.14) ** 2)) * (1 - disc) * 0.5
    row = (phase - np.round(phase - 0.5) - 0.5)[:, None] * pitch
    pedicle = np.exp(-(((np.abs(q) - 0.62) / 0.22) ** 2) - ((row - 3) / 4.2) ** 2)
    process = np.exp(-((q / 0.16) ** 2) - ((row + 5) / 6) ** 2)
    wing = np.exp(-(((row - 4) / 4.5) ** 2)) * np.clip(1 - np.abs(q) / 2.1, 0, 1) * 0.5
    out = anatomy.bone * (4 * body + 4 * rim + 6 * pedicle + 5 * process + 4 * wing)
    sternum = np.clip(1 - np.abs((x[None, :] + 14 * anatomy.yaw * 8) / 17) ** 6, 0, 1) * (np.abs(z + 5) < 75)[:, None]
    out += 3.0 * anatomy.bone * sternum
    gas = np.array([0.42 * anatomy.width, anatomy.dome - anatomy.dome_step - 22 + 6 * anatomy.wall[0, 2]])
    r = np.clip(15 + 9 * anatomy.wall[0, 3], 0, 34)
    if r > 6:
        d = np.hypot((x[None, :] - gas[0]) / 1.5, z[:, None] - gas[1])
        out -= 1.2 * np.sqrt(np.clip(r * r - d * d, 0, None))
    return out.astype(np.float32)


def _vessel_clouds(anatomy: Anatomy) -> list[tuple[np.ndarray, float]]:
    """Pulmonary vessels as points (x, z, mm^3 of water equivalent), grouped by the blur in mm that gives them their width."""
    tree = anatomy.tree
    points = an.turned(anatomy, tree.points)
    mass = np.pi * 0.8 * tree.radius**2 * tree.length * (surfaces.heart_distance(anatomy, *points.T) > 0)
    out = []
    for low, high in ((0, 1.6), (1.6, 3.2), (3.2, 9)):
        pick = (tree.radius >= low) & (tree.radius < high)
        weight = np.stack([points[pick, 0], points[pick, 2], mass[pick]])
        out.append((weight, 0.5 * float(np.sqrt(np.mean(tree.radius[pick] ** 2)))))
    return out


def _rib_cloud(anatomy: Anatomy, size: int) -> np.ndarray:
    steps, across = 40 + 5 * size // 8, 4 + size // 21
    phi = np.linspace(0.05, 0.87, steps) * np.pi
    height, end = an.rib_lines(anatomy, phi)
    a, b, cy = an.cage(anatomy, height)
    p = 2 / anatomy.squareness
    side = np.array([-1.0, 1.0])[:, None, None]
    sx, _ = an.spine_line(anatomy, height)
    x = side * (a + 4) * np.sin(phi) ** p + sx * np.clip(np.cos(phi), 0, 1)
    y = cy + (b + 4) * np.sign(np.cos(phi)) * np.abs(np.cos(phi)) ** p
    centre = np.stack([x, y, height], axis=-1)
    step = np.linalg.norm(np.gradient(centre, axis=2), axis=-1)
    centre = an.turned(anatomy, centre)
    # bone thins out into cartilage at its front end
    there = 1 / (1 + np.exp((phi - end[:, None]) / 0.03))
    e = (np.arange(across) + 0.5) / across * 2 - 1
    profile = 0.55 * np.sqrt(1 - e * e) + 0.65 * np.exp(-(((np.abs(e) - 0.9) / 0.14) ** 2))
    h = anatomy.rib_height * (0.72 + 0.28 * np.sin(np.clip(phi * 1.1, 0, np.pi))) * np.where(np.arange(12) < 2, 0.9, 1)[:, None]
    mass = anatomy.bone * 13.0 * there * step * (h / across)
    wz = centre[..., 2, None] + 0.5 * h[..., None] * e
    wx = np.broadcast_to(centre[..., 0, None], wz.shape)
    ribs = np.stack([wx.ravel(), wz.ravel(), (mass[..., None] * profile).ravel()])
    return np.concatenate([ribs, _girdle_cloud(anatomy, size)], axis=1)


def _girdle_cloud(anatomy: Anatomy, size: int) -> np.ndarray:
    """Clavicles, scapulae and humeri."""
    t = np.linspace(0, 1, 40 + size // 2)
    e = np.linspace(-1, 1, 5 + size // 24)
    parts = []
    reach = anatomy.width + 22
    for side in (-1, 1):
        j = 4 * anatomy.wall[2, 1 + (side > 0)]
        bones = [
            # x, z along the bone; width; density
            (14 + (reach - 14) * t, anatomy.apex - 18 + j + 30 * t + 7 * np.sin(2 * np.pi * t), 11, 12.0),
            (anatomy.width * (0.86 + 0.14 * t**2), anatomy.apex - 14 + j - 118 * t, 5, 2.2),
            (anatomy.width + 26 - 22 * t, anatomy.apex - 14 + j - 118 * t, 8, 2.4),
            (reach + 10 + 62 * t, anatomy.apex + 2 + j - 205 * t, 24, 6.0),
            (anatomy.width * 0.9 + (reach + 12 - anatomy.width * 0.9) * t, anatomy.apex - 8 + 24 * t + j, 9, 2.2),
        ]
        for bx, bz, w, density in bones:
            dx, dz = np.gradient(bx), np.gradient(bz)
            step = np.hypot(dx, dz)
            edges = 0.5 + 0.8 * np.abs(e) ** 4
            px = side * (bx[:, None] + 0.5 * w * e * (-dz / step)[:, None])
            pz = bz[:, None] + 0.5 * w * e * (dx / step)[:, None]
            mass = anatomy.bone * density * edges * (step * w / len(e))[:, None]
            parts.append(np.stack([px.ravel(), pz.ravel(), mass.ravel()]))
        ball = np.array([reach + 6, anatomy.apex - 6 + j])
        g = np.linspace(-1, 1, 16 + size // 4)
        gx, gz = np.meshgrid(g, g)
        inside = gx**2 + gz**2 < 1
        mass = anatomy.bone * 9 * np.sqrt(1 - gx[inside] ** 2 - gz[inside] ** 2) * (24 * (g[1] - g[0])) ** 2
        parts.append(np.stack([side * (ball[0] + 24 * gx[inside]), ball[1] + 24 * gz[inside], mass]))
    return np.concatenate(parts, axis=1)


def _project(cloud: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Points (3, m) of x, z and mass in mm^3 as path in mm, (h, w)."""
    dx, dz = x[1] - x[0], z[1] - z[0]
    return splat((cloud[0] - x[0]) / dx, (cloud[1] - z[0]) / dz, cloud[2] / abs(dx * dz), (len(z), len(x)))


def _roll(image: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.array([[c, s], [-s, c]])
    middle = (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(image, matrix, middle - matrix @ middle, order=3, mode="nearest")


def _expose(path: np.ndarray, scan: Scan, scanner: Scanner, pixel: float, rng: np.random.Generator) -> np.ndarray:
    size = len(path)
    primary = np.exp(-WATER * path)
    scatter = 0.75 * ndimage.gaussian_filter(primary * (path > 4), 28 / pixel, mode="nearest", truncate=2.5) + 0.002
    signal = primary + scatter * (path > 4)
    signal = ndimage.gaussian_filter(signal, max(0.32, scanner.blur / pixel), mode="nearest")
    signal *= 1 + 0.022 * scanner.noise * rng.standard_normal(path.shape) * np.sqrt(0.05 / (signal + 0.01))
    density = -np.log(np.maximum(signal, 1e-4))
    density += scanner.detail * (density - ndimage.gaussian_filter(density, 11 / pixel, mode="nearest", truncate=2.5))
    body = density[path > 30]
    low, high = np.percentile(body, scanner.window)
    value = (density - low) / (high - low) * scan.gain + scan.offset
    value = np.clip(value, 0, None)
    value = value**scanner.gamma
    value = np.where(value < 0.8, value, 1 - 0.2 * np.exp(-(value - 0.8) / 0.2))
    value = np.clip(value, 0, 1).astype(np.float32)
    top, bottom, left, right = (round(v * size) for v in scan.border)
    open_field = np.zeros_like(value)
    open_field[top : size - bottom, left : size - right] = 1
    return value * open_field
