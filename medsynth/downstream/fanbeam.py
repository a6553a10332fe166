"""Fan-beam CT of one slice: the projection matrix, filtered back-projection and SART.

Attenuation is per cm and line integrals have no unit; lengths are in mm as scanners state them. Geometry and conversion of
Hounsfield units follow Shi et al., arXiv:2301.06604.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy import fft, sparse

MU_WATER = 0.192  # per cm
WINDOWS = ("ramp", "hann")
_PUBLISHED_SIZE = 512  # pixels a side, for which the default numbers of views and detectors are meant
_CROSSINGS = 2**18  # of rays with grid lines, traced at once: keeps working memory near 15 MB


def attenuation(hu: np.ndarray) -> np.ndarray:
    """Linear attenuation in 1/cm of Hounsfield units, never below that of vacuum."""
    return np.maximum(MU_WATER * (1 + hu / 1000), 0)


def hounsfield(mu: np.ndarray) -> np.ndarray:
    """Hounsfield units of an attenuation in 1/cm."""
    return (mu / MU_WATER - 1) * 1000


@dataclass(frozen=True, kw_only=True)
class FanBeam:
    """A full turn of an equi-angular fan about the centre of a square image; the defaults are the published scanner."""

    views: int = 1152  # source positions on the full circle; a multiple of 4
    detectors: int = 672
    first: float = -0.4560  # fan angle of the first detector, radians
    last: float = 0.4526  # of the last; not its mirror image, so that opposite rays interleave
    source_mm: float = 570.0  # from the source to the centre of rotation
    field_mm: float = 409.6  # side of the image

    def __post_init__(self) -> None:
        if self.views < 4 or self.views % 4 or self.detectors < 2:
            raise ValueError(
                f"fan beam: {self.views} views x {self.detectors} detectors; expected a multiple of 4, and 2 or more"
            )
        if not -np.pi / 2 < self.first < 0 < self.last < np.pi / 2:
            raise ValueError(f"fan beam: fan from {self.first} to {self.last} rad; expected first < 0 < last within +-pi/2")
        if not 0 < self.field_mm < np.sqrt(2) * self.source_mm:
            raise ValueError(
                f"fan beam: a source {self.source_mm} mm from the centre would turn inside an image of {self.field_mm} mm"
            )

    @property
    def covered_mm(self) -> float:
        """Radius of the disc that every view sees whole."""
        return self.source_mm * float(np.sin(min(-self.first, self.last)))

    @property
    def step(self) -> float:
        """Angle between neighbouring detectors, radians."""
        return (self.last - self.first) / (self.detectors - 1)

    def for_size(self, size: int, *, field_mm: float | None = None, views: int | None = None) -> FanBeam:
        """The same scanner with as many rays as images of `size` pixels a side need, at most its own; views: to set their number.

        Two rays per pixel in each direction: with one, as published for smooth slices of 512 pixels, filtered back-projection
        loses the edges of small images, which are a pixel wide.
        """
        share = min(1.0, 2 * size / _PUBLISHED_SIZE)
        return replace(
            self,
            views=4 * max(1, round(self.views * share / 4)) if views is None else views,
            detectors=max(2, round(self.detectors * share)),
            field_mm=self.field_mm if field_mm is None else field_mm,
        )


@dataclass(frozen=True)
class Projector:
    """Projection of images (n, size, size) of attenuation to line integrals (n, views, detectors), and back.

    Everything is linear and treats each image on its own. Source i stands at angle 2 pi i / views from the x axis, x to the
    right and y upwards.
    """

    geometry: FanBeam
    size: int

    @cached_property
    def matrix(self) -> sparse.csr_array:
        """Length in cm of ray (view, detector) in pixel (row, column), float32 (views * detectors, size^2)."""
        g, n = self.geometry, self.size
        quarter = _quarter_turn(g, n)
        # a quarter turn of the source is a quarter turn of the image: three quarters need not be traced
        turned = (n - 1 - np.arange(n)[None, :]) * n + np.arange(n)[:, None]
        parts, columns = [], np.arange(n * n, dtype=np.int32)
        for _ in range(4):
            parts.append(sparse.csr_array((quarter.data, columns[quarter.indices], quarter.indptr), shape=quarter.shape))
            columns = turned.ravel().astype(np.int32)[columns]
        whole = sparse.vstack(parts, format="csr")
        whole.sort_indices()
        return whole

    @cached_property
    def covered(self) -> np.ndarray:
        """Pixels that every view sees, bool (size, size)."""
        x, y = self._coordinates()
        return np.hypot(x, y) <= self.geometry.covered_mm

    def forward(self, mu: np.ndarray) -> np.ndarray:
        """Line integrals (n, views, detectors) of attenuation in 1/cm, (n, size, size)."""
        self._check(mu, (self.size, self.size), "attenuation")
        return self._rays(self.matrix @ _columns(mu))

    def fbp(self, rays: np.ndarray, *, window: str = "ramp") -> np.ndarray:
        """Filtered back-projection, (n, size, size) in 1/cm, zero outside the disc that every view sees.

        Rays are rebinned to parallel ones, filtered by the ramp up to the detector's highest frequency ("ramp", Ram-Lak) or
        with a raised cosine upon it ("hann": less noise, less detail), and spread back.
        Source: Kak and Slaney (1988), sections 3.3 and 3.4.3.
        """
        self._check(rays, self._shape, "line integrals")
        if window not in WINDOWS:
            raise ValueError(f"filtered back-projection: window {window!r}; expected one of {WINDOWS}")
        parallel = (self._rebin @ _columns(rays)).reshape(self._angles, self._offsets.size, -1)
        length = fft.next_fast_len(2 * self._offsets.size)
        spectrum = fft.rfft(parallel, length, axis=1) * self._ramp(length, window)[None, :, None]
        filtered = fft.irfft(spectrum, length, axis=1)[:, : self._offsets.size]
        return self._images(self._spread @ filtered.reshape(-1, len(rays)).astype(np.float32)) * self.covered

    def sart(self, rays: np.ndarray, *, iterations: int = 20, subsets: int = 20, relaxation: float = 1.0) -> np.ndarray:
        """SART over ordered subsets of views, from zero, (n, size, size) in 1/cm.

        Source: Andersen and Kak, Ultrasonic Imaging 6:81 (1984); subsets as in Wang and Jiang, J X-Ray Sci Tech 12:169 (2004).
        """
        self._check(rays, self._shape, "line integrals")
        if not 1 <= subsets <= self.geometry.views:
            raise ValueError(f"SART: {subsets} subsets of {self.geometry.views} views; expected 1 to {self.geometry.views}")
        views = np.arange(self.geometry.views)
        parts = []
        for k in range(subsets):
            rows = (views[k::subsets, None] * self.geometry.detectors + np.arange(self.geometry.detectors)).ravel()
            part = self.matrix[rows]
            parts.append((part, _columns(rays[:, k::subsets]), _inverse(part.sum(1)), relaxation * _inverse(part.sum(0))))
        image = np.zeros((self.size**2, len(rays)), np.float32)
        for _ in range(iterations):
            for part, measured, per_ray, per_pixel in parts:
                image += per_pixel * (part.T @ (per_ray * (measured - part @ image)))
        return self._images(image)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.geometry.views, self.geometry.detectors

    @property
    def _angles(self) -> int:
        """Directions of the parallel rays on half a circle: opposite rays are one."""
        return self.geometry.views // 2

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Signed distances in mm of the parallel rays from the centre, at half the detector's spacing there."""
        g = self.geometry
        spacing = g.source_mm * g.step / 2
        reach = int(np.ceil(g.source_mm * np.sin(max(-g.first, g.last)) / spacing))
        return spacing * np.arange(-reach, reach + 1)

    @cached_property
    def _rebin(self) -> sparse.csr_array:
        """Fan to parallel rays by cubic interpolation; the two rays that run along one line are averaged."""
        g, s = self.geometry, self._offsets
        direction = np.pi * np.arange(self._angles)[:, None] / self._angles
        target = np.arange(direction.size * s.size)
        total, seen = 0, np.zeros(target.size, np.float32)
        for turn in (0, 1):
            # the ray at fan angle gamma from source angle beta has direction beta + gamma and offset -source_mm sin gamma
            gamma = np.broadcast_to(-np.arcsin((-1) ** turn * s / g.source_mm), (direction.size, s.size))
            view, view_weights = _cubic(((direction + np.pi * turn - gamma) * g.views / (2 * np.pi)).ravel())
            cell = ((gamma - g.first) / g.step).ravel()
            inside = ((cell >= 0) & (cell <= g.detectors - 1)).astype(np.float32)
            detector, detector_weights = _cubic(cell)
            columns = (view % g.views)[:, :, None] * g.detectors + np.clip(detector, 0, g.detectors - 1)[:, None, :]
            weights = (view_weights[:, :, None] * detector_weights[:, None, :] * inside[:, None, None]).astype(np.float32)
            rows = np.repeat(target, 16)
            total = total + sparse.csr_array(
                (weights.ravel(), (rows, columns.ravel())), shape=(target.size, g.views * g.detectors)
            )
            seen += inside
        return sparse.csr_array(sparse.diags_array(_inverse(seen)[:, 0]) @ total)

    @cached_property
    def _spread(self) -> sparse.csr_array:
        """Back-projection of parallel rays: the mean over directions, linear between offsets, (size^2, angles * offsets)."""
        x, y = (c.ravel() for c in self._coordinates())
        s, pixel = self._offsets, np.arange(self.size**2)
        data, columns = [], []
        for k, angle in enumerate(np.pi * np.arange(self._angles) / self._angles):
            cell = np.clip((y * np.cos(angle) - x * np.sin(angle) - s[0]) / (s[1] - s[0]), 0, s.size - 1.001)
            low = np.floor(cell).astype(np.int32)
            data += [1 - (cell - low), cell - low]
            columns += [k * s.size + low, k * s.size + low + 1]
        weights = np.array(data, dtype=np.float32).T * np.float32(np.pi / self._angles)
        start = np.arange(pixel.size + 1, dtype=np.int64) * weights.shape[1]
        index = np.array(columns, dtype=np.int32).T
        return sparse.csr_array((weights.ravel(), index.ravel(), start), shape=(pixel.size, self._angles * s.size))

    def _ramp(self, length: int, window: str) -> np.ndarray:
        """Frequency response per cm of the ramp that ends at the detector's highest frequency, for `length` samples."""
        spacing = (self._offsets[1] - self._offsets[0]) / 10
        highest = 1 / (4 * spacing)
        lag = fft.fftfreq(length, 1 / length) * spacing
        # sampled in space: sampling the ramp itself would set the mean of every projection to zero (Kak and Slaney, eq. 61)
        kernel = 2 * highest**2 * np.sinc(2 * highest * lag) - highest**2 * np.sinc(highest * lag) ** 2
        response = fft.rfft(kernel).real * spacing
        if window == "hann":
            frequency = np.minimum(fft.rfftfreq(length, spacing) / highest, 1)
            response = response * (0.5 + 0.5 * np.cos(np.pi * frequency))
        return response.astype(np.float32)

    def _coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of pixel centres in mm."""
        centre = (np.arange(self.size) + 0.5) * self.geometry.field_mm / self.size - self.geometry.field_mm / 2
        return np.meshgrid(centre, -centre)

    def _check(self, array: np.ndarray, shape: tuple[int, int], what: str) -> None:
        if array.ndim != 3 or array.shape[1:] != shape:
            raise ValueError(f"fan beam: {what} have shape {array.shape}; expected (n, {shape[0]}, {shape[1]})")

    def _rays(self, columns: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(columns.T).reshape(-1, *self._shape)

    def _images(self, columns: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(columns.T).reshape(-1, self.size, self.size)


@lru_cache(maxsize=2)
def projector(geometry: FanBeam, size: int) -> Projector:
    """The projector of a geometry, with its matrices kept: they take seconds to build and some 400 MB at 128 pixels."""
    return Projector(geometry, size)


def _quarter_turn(g: FanBeam, size: int) -> sparse.csr_array:
    """Rows of the projection matrix for the first quarter of the views, in cm."""
    angle = 2 * np.pi * np.arange(g.views // 4) / g.views
    beta, gamma = (a.ravel() for a in np.meshgrid(angle, np.linspace(g.first, g.last, g.detectors), indexing="ij"))
    source = g.source_mm * np.stack([np.cos(beta), np.sin(beta)], 1)
    along = -np.stack([np.cos(beta + gamma), np.sin(beta + gamma)], 1)
    step = max(1, _CROSSINGS // (2 * (size + 1)))
    parts = [_traced(source[i : i + step], along[i : i + step], g.field_mm, size) for i in range(0, len(source), step)]
    return sparse.vstack(parts, format="csr")


def _traced(source: np.ndarray, along: np.ndarray, field: float, size: int) -> sparse.csr_array:
    """Length in cm of rays in every pixel, float32 (n, size^2); source and unit direction are (n, 2), lengths in mm.

    Between two neighbouring crossings with grid lines a ray stays in one pixel. Source: Siddon, Med Phys 12:252 (1985).
    """
    half, pixel = field / 2, field / size
    lines = np.linspace(-half, half, size + 1)
    # a ray parallel to grid lines meets them far outside the image
    slope = np.where(np.abs(along) < 1e-12, 1e-12, along)
    crossings = (lines - source[:, :, None]) / slope[:, :, None]
    ends = crossings[:, :, [0, -1]]
    enters = ends.min(2).max(1)
    leaves = np.maximum(ends.max(2).min(1), enters)  # a ray that misses the image has no length
    crossings = np.sort(np.clip(crossings.reshape(len(source), -1), enters[:, None], leaves[:, None]), axis=1)
    lengths = np.diff(crossings)
    # at the corner of pixels, rounding leaves slivers whose pixel is not defined
    ray, k = np.nonzero(lengths > 1e-9 * pixel)
    middle = (crossings[ray, k] + crossings[ray, k + 1]) / 2
    column = np.floor((source[ray, 0] + along[ray, 0] * middle + half) / pixel).astype(np.int32)
    row = np.floor((half - source[ray, 1] - along[ray, 1] * middle) / pixel).astype(np.int32)
    index = np.clip(row, 0, size - 1) * size + np.clip(column, 0, size - 1)
    start = np.concatenate([[0], np.cumsum(np.bincount(ray, minlength=len(source)))])
    data = (lengths[ray, k] / 10).astype(np.float32)
    return sparse.csr_array((data, index, start.astype(np.int32)), shape=(len(source), size * size))


def _cubic(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The four neighbours of fractional positions and their weights, (n, 4) each (Keys 1981, a = -1/2)."""
    low = np.floor(position).astype(np.int64)
    t = (position - low)[:, None]
    distance = np.abs(t - np.arange(-1, 3))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return low[:, None] + np.arange(-1, 3), np.where(distance <= 1, near, far)


def _columns(stack: np.ndarray) -> np.ndarray:
    """(n, a, b) as float32 (a * b, n), what a sparse matrix multiplies fastest."""
    return np.ascontiguousarray(stack.reshape(len(stack), -1).T, dtype=np.float32)


def _inverse(sums: np.ndarray) -> np.ndarray:
    """1 / sums as a column, 0 where a sum is 0: a ray that misses the image says nothing of it."""
    sums = np.asarray(sums, dtype=np.float32)[:, None]
    return np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)
