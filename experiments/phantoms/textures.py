"""Draws tiles that look like H&E: mucosa with crypts, and two kinds of tumour.

A tile is two maps of optical density, haematoxylin (nuclei) and eosin (cytoplasm,
fibres), coloured by Beer and Lambert's law. Tiles are periodic, and those of one style
share what lies at their border: any two fit side by side without a seam.
"""

import enum
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import fft

# Optical density per unit of stain, RGB (Ruifrok and Johnston, 2001), eosin
# with a little more blue absorbed, as scanners show it.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.92, 0.42], np.float32)


class Kind(enum.Enum):
    """What a tile shows."""

    NORMAL = "normal"  # crypts with goblet cells in stroma with small nuclei
    TUMOR = "tumor"  # nests of crowded, large, uneven nuclei
    SMALL_CELL = "small_cell"  # sheets of small, dark, packed nuclei


class Cells(NamedTuple):
    """The law of one population of nuclei. Lengths in um, stains in optical density."""

    radius: float
    spread: float  # of log radius
    stretch: float  # long over short axis, at most
    stain: float
    rim: float  # extra stain at the nuclear membrane
    grain: float  # contrast of chromatin
    spacing: float  # mean distance of neighbours


STROMAL = Cells(2.7, 0.18, 2.4, 1.0, 0.0, 0.15, 10.5)
CRYPT = Cells(3.0, 0.10, 1.5, 0.85, 0.1, 0.15, 6.2)
NEST = {
    Kind.TUMOR: Cells(5.0, 0.25, 1.6, 0.85, 0.4, 0.5, 10.4),
    Kind.SMALL_CELL: Cells(2.9, 0.10, 1.3, 1.15, 0.0, 0.2, 6.0),
}


def draw(
    kind: Kind, style: int, variants: int, size_px: int, mpp: float
) -> UInt8[np.ndarray, "n s s 3"]:
    """Draws tiles of one style; any two of them fit side by side.

    The style is the seed of sizes, densities, stain and the shared border.
    """
    seed = hashlib.sha256(f"{kind.value}:{style}".encode()).digest()
    seeds = np.random.SeedSequence(int.from_bytes(seed[:8], "big")).spawn(variants + 2)
    style_rng, *rngs = [np.random.default_rng(s) for s in seeds[1:]]
    look = _Look(style_rng)
    tiles = []
    for rng in rngs:
        # The same seed again for every variant: the border that they share.
        shared = np.random.default_rng(seeds[0])
        tiles.append(_Tile(shared, rng, look, size_px, mpp).paint(kind))
    return np.stack(tiles)


class _Look:
    """How one style differs from the next."""

    def __init__(self, rng):
        self.size = np.exp(0.05 * rng.normal())
        self.density = np.exp(0.06 * rng.normal())
        self.haematoxylin = np.exp(0.08 * rng.normal())
        self.eosin = np.exp(0.08 * rng.normal())
        self.fibre_angle = rng.uniform(0, np.pi)
        self.nest_share = rng.uniform(0.8, 0.92)


class _Tile:
    def __init__(self, shared, own, look, size_px, mpp):
        self.shared, self.own, self.look = shared, own, look
        self.size, self.mpp = size_px, mpp
        self.h = np.zeros((size_px, size_px), np.float32)
        self.e = np.zeros((size_px, size_px), np.float32)
        self.clear = np.zeros((size_px, size_px), np.float32)
        axis = np.minimum(np.arange(size_px), size_px - 1 - np.arange(size_px)) * mpp
        self.from_border = np.minimum(axis[:, None], axis[None, :]).astype(np.float32)
        self.grain = self.noise(max(1.2, mpp))

    def paint(self, kind):
        self.stroma()
        if kind is Kind.NORMAL:
            inside = self.crypts()
            self.nuclei(STROMAL, where=inside < -0.5)
        else:
            nests = self.nests()
            nest, hollow = nests > 0, nests > 2
            self.e[nest] *= 0.7
            self.h += 0.17 * np.clip(nests * 4, 0, 1)
            self.clear = np.maximum(self.clear, np.clip((nests - 2) * 4, 0, 0.9))
            self.nuclei(STROMAL, where=~nest)
            self.nuclei(NEST[kind], where=nest & ~hollow)
        self.e += 0.02 * self.noise(0.7)
        self.h += 0.015 * self.noise(0.7)
        keep = 1 - self.clear
        h = self.look.haematoxylin * (self.h * keep + 0.02)
        e = self.look.eosin * (self.e * keep + 0.03)
        density = h[..., None] * HAEMATOXYLIN + e[..., None] * EOSIN
        light = np.exp(-density.clip(0))
        return (246 * light).clip(0, 255).round().astype(np.uint8)

    def stroma(self):
        """Wavy eosin fibres with clear gaps between them."""
        cos, sin = np.cos(self.look.fibre_angle), np.sin(self.look.fibre_angle)
        # A whole number of waves per tile keeps the fibres periodic.
        waves = self.size * self.mpp / 9.0
        ky, kx = np.round(waves * sin), np.round(waves * cos)
        y, x = np.mgrid[: self.size, : self.size].astype(np.float32) / self.size
        wave = np.sin(2 * np.pi * (ky * y + kx * x) + 2.2 * self.noise(14.0))
        self.e += 0.30 + 0.07 * wave + 0.05 * self.noise(3.0) + 0.05 * self.noise(25.0)
        self.h += 0.05 + 0.02 * self.noise(10.0)
        gaps = 0.5 * wave + self.noise(5.0) + 0.4 * self.noise(2.0)
        self.clear = np.clip((-gaps - 1.1) * 1.6, 0, 0.85).astype(np.float32)

    def crypts(self):
        """Draws crypts; returns the depth into the nearest, um, negative outside."""
        span = self.size * self.mpp
        across = max(round(span / 92), 1)
        down = max(round(span / 80 / 2) * 2, 1)
        pitch = span / max(across, down)
        at = np.stack(np.mgrid[:down, :across], -1).reshape(-1, 2).astype(np.float32)
        at[:, 1] += 0.5 * (at[:, 0] % 2)
        at = (at + 0.25) * np.array([span / down, span / across])
        keep = 0.5 * pitch + 12
        n = len(at)
        draws = [
            (
                rng.normal(size=(n, 2)) * 5,
                rng.uniform(0.38, 0.5, n) * pitch,
                rng.normal(size=(n, 6)),
                rng.uniform(0.6, 1.4, n),
            )
            for rng in (self.shared, self.own)
        ]
        depth = np.full((self.size, self.size), -1e3, np.float32)
        for i, centre in enumerate(at):
            edge = min(*(centre % span), *(span - centre % span))
            mine = int(edge >= keep)
            rng = (self.shared, self.own)[mine]
            shift, radius, wobble, goblet = (values[i] for values in draws[mine])
            centre = centre + shift
            reach = int(1.35 * radius / self.mpp) + 4
            first = np.floor(centre / self.mpp).astype(int) - reach
            rows, columns = first[:, None] + np.arange(2 * reach + 1)
            dy = (rows * self.mpp - centre[0])[:, None].astype(np.float32)
            dx = (columns * self.mpp - centre[1])[None, :].astype(np.float32)
            angle = np.arctan2(dy, dx)
            here = _outline(radius, wobble, angle) - np.hypot(dy, dx)
            window = np.ix_(rows % self.size, columns % self.size)
            depth[window] = np.maximum(depth[window], here)
            self.crypt(window, here, angle, radius, goblet)
            self.ring(centre, radius, wobble, rng)
        return depth

    def crypt(self, window, depth, angle, radius, goblet):
        """Epithelium, goblet vacuoles and lumen of one crypt."""
        inside = np.clip(depth / 1.5 + 0.5, 0, 1)
        self.e[window] += inside * (0.22 - self.e[window])
        self.h[window] += inside * (0.13 - self.h[window])
        # A clear cleft around a crypt, as fixation leaves it.
        cleft = 0.4 * np.exp(-(((depth + 2) / 1.3) ** 2))
        lumen = 0.85 * np.clip((depth - 0.78 * radius) / 3 + 0.5, 0, 1)
        # Vacuoles: pale petals between the nuclei and the lumen.
        petals = np.round(2 * np.pi * radius / 15)
        row = (depth - 9) / max(0.62 * radius - 9, 6)
        middle = np.clip(1 - np.abs(row - 0.5) * 2.1, 0, 1)
        petal = np.cos(petals * angle + 3 * row) + 1.35 * middle - 1.0
        vacuole = 0.72 * np.clip(goblet * petal * 2.2, 0, 1) * (middle > 0)
        clear = np.maximum(np.maximum(cleft, lumen), vacuole)
        self.clear[window] = np.maximum(self.clear[window] * (1 - inside), clear)

    def ring(self, centre, radius, wobble, rng):
        """The basal row of nuclei of one crypt."""
        n = int(2 * np.pi * radius / CRYPT.spacing * self.look.density)
        turn = np.linspace(0, 2 * np.pi, n, endpoint=False) + rng.normal(0, 0.05, n)
        out = _outline(radius, wobble, turn) - 4.5 + rng.normal(0, 0.7, n)
        at = centre + out[:, None] * np.stack([np.sin(turn), np.cos(turn)], -1)
        self.stamp(CRYPT, at, turn, rng)

    def nests(self):
        """Tumour nests: below 0 stroma, 0..2 nest, above 2 a hollow in a nest."""
        ridge = np.abs(self.noise(17.0) + 0.25 * self.noise(6.0))
        edge = np.quantile(ridge, 1 - self.look.nest_share)
        field = np.clip((ridge - edge) * 6, -1, 1)
        hollow = self.noise(9.0) - 2.1
        return np.where((hollow > 0) & (field > 0.9), 2 + hollow * 2, field)

    def nuclei(self, cells, where):
        """Scatters nuclei on a jittered lattice where `where` is true."""
        span = self.size * self.mpp
        n = max(round(span / cells.spacing * float(np.sqrt(self.look.density))), 1)
        pitch = span / n
        grid = np.stack(np.mgrid[:n, :n], -1).reshape(-1, 2).astype(np.float32)
        grid[:, 1] += 0.5 * (grid[:, 0] % 2)
        grid = (grid + 0.25) * pitch % span
        near = np.minimum(grid, span - grid).min(1) < 3 * cells.radius + pitch
        for rng, mine in ((self.shared, near), (self.own, ~near)):
            at = grid + rng.normal(0, 0.24, grid.shape) * pitch
            angle = rng.uniform(0, 2 * np.pi, len(grid))
            iy, ix = (at / self.mpp).astype(int).T % self.size
            self.stamp(cells, at, angle, rng, mine & where[iy, ix])

    def stamp(self, cells, at, angle, rng, use=...):
        """Adds a nucleus at every `at[use]` [n 2], um, its long axis along `angle`.

        All are drawn, so that what one variant leaves out changes no shared one.
        """
        n = len(at)
        radius = cells.radius * np.exp(cells.spread * rng.normal(size=n))
        stretch = rng.uniform(1, cells.stretch, n)
        stain = cells.stain * np.exp(0.12 * rng.normal(size=n))
        kept = (part[use] for part in (at, angle, radius, stretch, stain))
        at, angle, radius, stretch, stain = kept
        radius = radius * self.look.size
        reach = int(np.ceil(cells.radius * 1.9 * np.sqrt(cells.stretch) / self.mpp)) + 1
        first = np.floor(at / self.mpp).astype(int) - reach
        steps = np.arange(2 * reach + 1)
        rows, columns = first[:, :1] + steps, first[:, 1:] + steps
        dy = ((rows * self.mpp - at[:, :1])[:, :, None]).astype(np.float32)
        dx = ((columns * self.mpp - at[:, 1:])[:, None, :]).astype(np.float32)
        sin, cos = (
            f(angle)[:, None, None].astype(np.float32) for f in (np.sin, np.cos)
        )
        scale = (1 / radius)[:, None, None].astype(np.float32)
        root = np.sqrt(stretch)[:, None, None].astype(np.float32)
        along, beside = (cos * dx + sin * dy) / root, (cos * dy - sin * dx) * root
        r = np.hypot(along, beside) * scale
        soft = np.clip((1 - r) * cells.radius / max(0.9, self.mpp) + 0.5, 0, 1)
        inner = 1 + cells.rim * (np.exp(-(((r - 0.85) / 0.2) ** 2)) - 0.6)
        rows, columns = rows % self.size, columns % self.size
        grain = cells.grain * self.grain[rows[:, :, None], columns[:, None, :]]
        nucleus = soft * stain[:, None, None].astype(np.float32)
        nucleus = nucleus * (inner + grain).clip(0.15)
        for i in range(len(at)):
            window = np.ix_(rows[i], columns[i])
            self.h[window] = np.maximum(self.h[window], nucleus[i])
            self.clear[window] *= 1 - soft[i]
            self.e[window] *= 1 - 0.5 * soft[i]

    def noise(self, scale_um: float) -> Float32[np.ndarray, "s s"]:
        """Periodic Gaussian noise of unit variance, the shared one at the border."""
        shape = (self.size, self.size)
        y, x = fft.fftfreq(self.size)[:, None], fft.rfftfreq(self.size)[None, :]
        sigma = scale_um / self.mpp / 2
        window = np.exp(-2 * (np.pi * sigma) ** 2 * (y**2 + x**2)).astype(np.float32)
        window[0, 0] = 0
        pair = (self.shared, self.own)
        white = np.stack([rng.standard_normal(shape, np.float32) for rng in pair])
        field = fft.irfft2(fft.rfft2(white) * window, shape)
        field /= field.std(axis=(1, 2), keepdims=True)
        mix = np.exp(-((self.from_border / max(scale_um, 8)) ** 2))
        return mix * field[0] + np.sqrt(1 - mix**2) * field[1]


def _outline(radius, wobble, angle):
    """Distance of a crypt's edge from its centre, um, along `angle`."""
    return radius * (
        1
        + 0.09 * wobble[0] * np.cos(2 * angle + wobble[1])
        + 0.04 * wobble[2] * np.cos(3 * angle + wobble[3])
        + 0.03 * wobble[4] * np.cos(5 * angle + wobble[5])
    ).astype(np.float32)
