"""How each family of specimens is drawn: coverage of shapes on a fine canvas, in nanometres (numpy only).

A catalogue: each drawing stands alone, so its length is the number of families.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.canvas import Canvas

Image = NDArray[np.float32]


def _levels(rng: np.random.Generator, least: float = 0.25) -> tuple[float, float]:
    """(background, foreground) reflectivity at least `least` apart; either may be the brighter."""
    dark = rng.uniform(0.02, 0.4)
    bright = rng.uniform(dark + least, 1.0)
    return (dark, bright) if rng.random() < 0.6 else (bright, dark)


def _stripes(canvas: Canvas, across_nm: Image, pitch_nm: float, width_nm: float) -> Image:
    phase = np.mod(across_nm, np.float32(pitch_nm))
    return canvas.cover(np.abs(phase - np.float32(pitch_nm / 2)) - np.float32(width_nm / 2))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _grating(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Two to four fields of line gratings of different pitch, angle and depth, meeting at straight borders."""
    image = canvas.full(0)
    for index in range(rng.integers(2, 5)):
        low, high = _levels(rng)
        pitch = _log_uniform(rng, 200, 1500)
        _, across = canvas.rotated(rng.uniform(0, math.pi))
        field = low + _stripes(canvas, across + 1e5, pitch, pitch * rng.uniform(0.3, 0.7)) * np.float32(high - low)
        along, _ = canvas.rotated(rng.uniform(0, 2 * math.pi))
        border = rng.uniform(-0.35, 0.35) * min(canvas.size_nm) if index else np.inf
        image += canvas.cover(along - np.float32(border)) * (field - image)
    return image


def _dots(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Discs of 50 to 300 nm scattered at random, a few larger ones."""
    low, high = _levels(rng)
    image = canvas.full(low)
    area_um2 = canvas.size_nm[0] * canvas.size_nm[1] / 1e6
    for _ in range(int(area_um2 * _log_uniform(rng, 0.3, 5)) + 1):
        diameter = rng.uniform(50, 300) if rng.random() < 0.9 else rng.uniform(300, 1200)
        canvas.disc(image, canvas.point(rng), diameter / 2, low + (high - low) * rng.uniform(0.4, 1))
    return image


def _siemens(canvas: Canvas, rng: np.random.Generator) -> Image:
    """A Siemens star: spokes that become finer towards its centre."""
    low, high = _levels(rng, 0.4)
    spokes = int(rng.integers(12, 49))
    cy, cx = canvas.point(rng, 0.3 * min(canvas.size_nm))
    y, x = canvas.y - np.float32(cy), canvas.x - np.float32(cx)
    r = np.hypot(y, x)
    turn = np.arctan2(y, x) * np.float32(spokes / (2 * math.pi)) + np.float32(rng.random())
    # Distance along the circle to the nearest spoke's middle, minus half a spoke.
    signed = (np.abs(np.mod(turn, 1) - 0.5) - np.float32(0.25)) * (2 * math.pi / spokes) * r
    star = canvas.cover(signed) * canvas.cover(r - np.float32(rng.uniform(0.3, 0.6) * min(canvas.size_nm)))
    image = low + star * np.float32(high - low)
    canvas.disc(image, (cy, cx), spokes * 40 / math.pi, high)  # below an 80 nm period a star is solid
    return image


def _ic_metal(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Two crossing layers of metal wires with breaks, wide power rails, and vias at crossings."""
    image = canvas.full(rng.uniform(0.05, 0.3))
    lower, upper, via = rng.uniform(0.3, 0.55), rng.uniform(0.6, 0.95), rng.choice([0.15, 1.0])
    height, width = canvas.size_nm
    pitch = _log_uniform(rng, 300, 1100)
    for level, (long, short), upright in ((lower, (height, width), True), (upper, (width, height), False)):
        position = rng.uniform(0, pitch)
        while position < short:
            rail = rng.random() < 0.08
            half = pitch * (rng.uniform(0.6, 1.1) if rail else rng.uniform(0.2, 0.3))
            start = -rng.uniform(0, 3 * pitch)
            while start < long:
                length = long + 6 * pitch if rail else pitch * rng.uniform(2, 18)
                middle, half_length = start + length / 2, length / 2
                if upright:
                    canvas.box(image, (middle, position), (half_length, half), level)
                else:
                    canvas.box(image, (position, middle), (half, half_length), level)
                start += length + pitch * rng.uniform(0.7, 3)
            position += pitch * (2 if rail else rng.choice([1, 1, 1, 2]))
    for _ in range(int(height * width / pitch**2 * 0.08)):
        y, x = canvas.point(rng)
        canvas.box(image, (y, x), (pitch * 0.16, pitch * 0.16), float(via))
    return image


def _pollen(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Grains, spiny or smooth, shaded as balls, with pits on the surface and spines around the rim."""
    image = canvas.full(rng.uniform(0.02, 0.2))
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.15, 0.3) * min(canvas.size_nm)
        cy, cx = canvas.point(rng)
        level = rng.uniform(0.5, 0.95)
        count = int(rng.integers(10, 28)) if rng.random() < 0.7 else 0
        length, turn = radius * rng.uniform(0.12, 0.35), rng.uniform(0, math.pi)
        for spine in range(count):
            angle = turn + 2 * math.pi * spine / count + rng.normal(0, 0.05)
            for step in np.linspace(0, 1, 8):
                reach = radius * 0.97 + length * step
                place = (cy + reach * math.sin(angle), cx + reach * math.cos(angle))
                canvas.disc(image, place, max(length * 0.3 * (1 - step), 30), level)
        canvas.ball(image, (cy, cx), radius, level)
        for _ in range(int(rng.integers(0, 90))):
            reach, angle = radius * math.sqrt(rng.random()) * 0.9, rng.uniform(0, 2 * math.pi)
            place = (cy + reach * math.sin(angle), cx + reach * math.cos(angle))
            canvas.disc(image, place, radius * rng.uniform(0.01, 0.05), level * rng.choice([0.5, 1.05]))
    return np.clip(image, 0, 1)


def _empty(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Nothing at all: what a network draws here it has made up."""
    return canvas.full(rng.uniform(0.02, 1.0))


def _leaves(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Discs and bars of all sizes and levels that hide one another (dead leaves, Lee et al. 2001)."""
    image = canvas.full(rng.random())
    area_um2 = canvas.size_nm[0] * canvas.size_nm[1] / 1e6
    shapes = int(area_um2 * rng.uniform(2, 7)) + 4
    sizes = np.sort(100 * (1 - rng.random(shapes) * 0.995) ** -0.5)[::-1]  # few large, many small; large first
    for size in sizes:
        value = rng.random()
        if rng.random() < 0.4:
            canvas.disc(image, canvas.point(rng), size, value)
        else:
            half = (size * rng.uniform(0.3, 1), size * rng.uniform(0.5, 4))
            canvas.box(image, canvas.point(rng), half, value, rng.uniform(0, math.pi))
    return image


def _clouds(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Texture without edges: noise whose power falls with a random power of frequency, as in natural surfaces."""
    fy, fx = (np.fft.fftfreq(side, canvas.pixel_nm / 1e3).astype(np.float32) for side in canvas.shape_px)
    frequency = np.hypot(fy[:, None], fx[None, : canvas.shape_px[1] // 2 + 1])
    # No structure larger than 5 um, which is light rather than texture.
    amplitude = np.maximum(frequency, np.float32(0.2)) ** np.float32(-rng.uniform(0.8, 2.0))
    spectrum = np.fft.rfft2(rng.standard_normal(canvas.shape_px, dtype=np.float32)) * amplitude
    noise = np.fft.irfft2(spectrum, s=canvas.shape_px).astype(np.float32)
    low, high = _levels(rng)
    # A hard limit gives patches, a soft one relief.
    signed = np.tanh((noise - noise.mean()) / noise.std() * np.float32(_log_uniform(rng, 0.4, 4)))
    return np.asarray((low + high) / 2 + signed * np.float32((high - low) / 2), dtype=np.float32)


def _labyrinth(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Winding bands as of a block copolymer: a level set of waves of nearly one length."""
    low, high = _levels(rng)
    pitch = _log_uniform(rng, 260, 1300)
    wave = canvas.full(0)
    for _ in range(14):
        along, _ = canvas.rotated(rng.uniform(0, 2 * math.pi))
        frequency = 2 * math.pi / (pitch * rng.uniform(0.8, 1.25))
        wave += np.cos(along * np.float32(frequency) + np.float32(rng.uniform(0, 2 * math.pi)))
    # A sum of 14 cosines has a slope of about sqrt(7) 2 pi / pitch: that turns it into a distance.
    signed = (wave - np.float32(rng.uniform(-1.5, 1.5))) * np.float32(pitch / (2 * math.pi * math.sqrt(7)))
    return low + canvas.cover(signed) * np.float32(high - low)


def _crystals(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Crystal grains of different levels with dark or bright boundaries: Voronoi cells of a jittered lattice."""
    cell = _log_uniform(rng, 500, 3000)
    rows, columns = (math.ceil(side / cell) + 2 for side in canvas.size_nm)
    jitter = rng.random((rows, columns, 2), dtype=np.float32)
    darkest, brightest = sorted(_levels(rng))
    level = rng.uniform(darkest, brightest, (rows, columns)).astype(np.float32)
    row = (canvas.y // np.float32(cell)).astype(np.intp) + 1
    column = (canvas.x // np.float32(cell)).astype(np.intp) + 1
    nearest: Image = canvas.full(np.inf)
    second: Image = canvas.full(np.inf)
    image: Image = canvas.full(0)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            r, c = np.clip(row + dr, 0, rows - 1), np.clip(column + dc, 0, columns - 1)
            seed = jitter[r, c]
            distance = np.hypot(
                canvas.y - (r - 1 + seed[..., 0]) * np.float32(cell),
                canvas.x - (c - 1 + seed[..., 1]) * np.float32(cell),
            )
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            image = np.where(closer, level[r, c], image)
            nearest = np.where(closer, distance, nearest)
    edge = canvas.cover(np.float32(0.5) * (second - nearest) - np.float32(rng.uniform(30, 120)))
    return np.asarray(image + edge * (np.float32(rng.choice([0.0, 1.0])) - image), dtype=np.float32)


def _lattice(canvas: Canvas, rng: np.random.Generator) -> Image:
    """A photonic crystal: a square or triangular lattice of holes, some missing, some shifted."""
    low, high = _levels(rng)
    image = canvas.full(low)
    pitch = _log_uniform(rng, 280, 1200)
    radius = pitch * rng.uniform(0.15, 0.4)
    rise = pitch * (math.sqrt(3) / 2 if rng.random() < 0.5 else 1)
    rows, columns = math.ceil(canvas.size_nm[0] / rise) + 2, math.ceil(canvas.size_nm[1] / pitch) + 2
    slope, missing = rng.uniform(-0.3, 0.3), rng.uniform(0, 0.2)
    for row in range(-columns // 3, rows + columns // 3):
        for column in range(-1, columns):
            if rng.random() >= missing:
                shift = 0.5 * (row % 2) if rise < pitch else 0.0
                x = (column + shift) * pitch + rng.normal(0, 0.02 * pitch)
                canvas.disc(image, (row * rise + slope * x, x), radius, high)
    return image


# Strokes of a sixteen-segment sign on a grid 2 wide and 4 high: (y0, x0, y1, x1).
_STROKES = (
    (0, 0, 0, 2), (2, 0, 2, 2), (4, 0, 4, 2), (0, 0, 2, 0), (2, 0, 4, 0), (0, 2, 2, 2), (2, 2, 4, 2),
    (0, 1, 4, 1), (0, 0, 2, 1), (0, 2, 2, 1), (2, 1, 4, 0), (2, 1, 4, 2),
)  # fmt: skip


def _text(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Rows of signs made of strokes, as a mask's label has them."""
    low, high = _levels(rng, 0.35)
    image = canvas.full(low)
    unit = _log_uniform(rng, 180, 700)
    half = unit * rng.uniform(0.15, 0.35)
    for row in range(math.ceil(canvas.size_nm[0] / (6 * unit))):
        for column in range(math.ceil(canvas.size_nm[1] / (3.4 * unit))):
            if rng.random() < 0.15:
                continue
            top, left = (6 * row + 1) * unit, (3.4 * column + 0.7) * unit
            for stroke in rng.choice(len(_STROKES), size=int(rng.integers(3, 6)), replace=False):
                y0, x0, y1, x1 = (side * unit for side in _STROKES[stroke])
                length = math.hypot(y1 - y0, x1 - x0) / 2 + half
                centre = (top + (y0 + y1) / 2, left + (x0 + x1) / 2)
                canvas.box(image, centre, (half, length), high, math.atan2(y1 - y0, x1 - x0) or 0.0)
    return image


def _line_space(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Lithography lines and spaces with rough edges, line ends and dislocations."""
    low, high = _levels(rng)
    pitch = _log_uniform(rng, 220, 1100)
    along, across = canvas.rotated(rng.choice([0, math.pi / 2]) + rng.normal(0, 0.05))
    rough = np.zeros_like(along)
    for _ in range(5):
        wavelength = _log_uniform(rng, 600, 6000)
        rough += np.sin(along * np.float32(2 * math.pi / wavelength) + np.float32(rng.uniform(0, 2 * math.pi)))
    across = across + rough * np.float32(pitch * rng.uniform(0, 0.03)) + np.float32(1e5)
    line = np.floor(across / np.float32(pitch)).astype(np.intp)
    cut = rng.uniform(-0.5, 0.5, int(line.max()) + 1).astype(np.float32) * np.float32(max(canvas.size_nm))
    has_cut = rng.random(len(cut)) < rng.uniform(0, 0.5)
    gap = canvas.cover(np.abs(along - cut[line]) - np.float32(pitch * rng.uniform(0.3, 1))) * has_cut[line]
    cover = _stripes(canvas, across, pitch, pitch * rng.uniform(0.35, 0.65)) * (1 - gap)
    return np.asarray(low + cover * (high - low), dtype=np.float32)


def _nanoparticles(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Shaded particles of 50 to 300 nm, single, in chains and in clusters."""
    low = rng.uniform(0.02, 0.25)
    image = canvas.full(low)
    area_um2 = canvas.size_nm[0] * canvas.size_nm[1] / 1e6
    mean = _log_uniform(rng, 90, 260)
    for _ in range(int(area_um2 * _log_uniform(rng, 0.1, 1.0)) + 1):
        (y, x), angle = canvas.point(rng, -300), rng.uniform(0, 2 * math.pi)
        for _ in range(1 + rng.poisson(rng.choice([0, 2, 8]))):
            radius = float(np.clip(rng.normal(mean, 0.2 * mean), 50, 300)) / 2
            canvas.ball(image, (y, x), radius, rng.uniform(low + 0.35, 1))
            angle += rng.normal(0, 0.7)
            y, x = y + 1.9 * radius * math.sin(angle), x + 1.9 * radius * math.cos(angle)
    return image


def _ic_contacts(canvas: Canvas, rng: np.random.Generator) -> Image:
    """A memory-like array: one random cell of gates, local wires and contacts, mirrored over the plane."""
    low, active, gate, contact = 0.08, rng.uniform(0.25, 0.4), rng.uniform(0.5, 0.65), rng.uniform(0.85, 1)
    unit = _log_uniform(rng, 130, 400)
    cell = Canvas(
        (max(round(8 * unit / canvas.pixel_nm), 8), max(round(12 * unit / canvas.pixel_nm), 8)), canvas.pixel_nm
    )
    tile = cell.full(low)
    for row in rng.choice(8, size=3, replace=False):
        cell.box(tile, ((row + 0.5) * unit, rng.uniform(3, 9) * unit), (0.45 * unit, rng.uniform(2, 5) * unit), active)
    for column in rng.choice(12, size=4, replace=False):
        cell.box(
            tile, (rng.uniform(2, 6) * unit, (column + 0.5) * unit), (rng.uniform(1.5, 4) * unit, 0.4 * unit), gate
        )
    for _ in range(rng.integers(3, 7)):
        centre = ((rng.integers(8) + 0.5) * unit, (rng.integers(12) + 0.5) * unit)
        cell.box(tile, centre, (0.35 * unit, 0.35 * unit), contact)
    pair = np.concatenate([tile, tile[:, ::-1]], axis=1)
    block = np.concatenate([pair, pair[::-1]], axis=0)
    start = [int(rng.integers(side)) for side in block.shape]
    repeats = [
        math.ceil((side + first) / period)
        for side, first, period in zip(canvas.shape_px, start, block.shape, strict=True)
    ]
    image = np.tile(block, repeats)[start[0] :, start[1] :][: canvas.shape_px[0], : canvas.shape_px[1]].copy()
    for _ in range(rng.integers(0, 4)):  # defects: a repeated pattern alone could be averaged
        canvas.disc(image, canvas.point(rng), unit * rng.uniform(0.5, 2), rng.uniform(0, 1))
    return image


def _disc_tracks(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Pits of an optical disc: tracks of 320 to 740 nm pitch, pits of three to eleven clock lengths."""
    low, high = _levels(rng)
    pitch = rng.choice([320.0, 500.0, 740.0])
    clock, width = pitch * rng.uniform(0.18, 0.25), pitch * rng.uniform(0.4, 0.55)
    along, across = canvas.rotated(rng.uniform(0, math.pi))
    across = across + along**2 / np.float32(2 * rng.uniform(2e5, 2e6)) + np.float32(1e5)  # a spiral's curvature
    track = np.floor(across / np.float32(pitch)).astype(np.intp)
    slots = int(3e5 / clock)
    written = np.zeros((int(track.max()) + 1, slots), np.float32)
    for row in range(int(track.min()), len(written)):
        runs = rng.integers(3, 12, slots // 3)
        written[row] = np.repeat(np.arange(len(runs)) % 2, runs)[:slots]
    place = along / np.float32(clock) + np.float32(slots / 2)
    index = np.clip(place.astype(np.intp), 0, slots - 2)
    # Soft ends: a share of the next slot where the pixel lies across the border between two.
    share = np.clip((place - index - 1) * np.float32(clock / canvas.pixel_nm) + 1, 0, 1)
    pit = written[track, index] * (1 - share) + written[track, index + 1] * share
    return np.asarray(low + _stripes(canvas, across, pitch, width) * pit * (high - low), dtype=np.float32)


def _bars(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Groups of three bars, upright and lying, in sizes from 80 to 600 nm, as on a resolution target."""
    low, high = _levels(rng, 0.35)
    image = canvas.full(low)
    y = rng.uniform(0, 600)
    while y < canvas.size_nm[0]:
        x, tallest = rng.uniform(0, 600), 0.0
        while x < canvas.size_nm[1]:
            bar = _log_uniform(rng, 80, 600)
            upright = rng.random() < 0.5
            for index in range(3):
                middle = (2 * index + 0.5) * bar
                centre, half = ((y + 2.5 * bar, x + middle), (2.5 * bar, bar / 2))
                if not upright:
                    centre, half = ((y + middle, x + 2.5 * bar), (bar / 2, 2.5 * bar))
                canvas.box(image, centre, half, high)
            x, tallest = x + 7 * bar, max(tallest, 7 * bar)
        y += tallest
    return image


Draw = Callable[[Canvas, np.random.Generator], Image]

FAMILIES: dict[str, Draw] = {
    "grating": _grating,
    "dots": _dots,
    "siemens": _siemens,
    "ic-metal": _ic_metal,
    "pollen": _pollen,
    "empty": _empty,
    "leaves": _leaves,
    "clouds": _clouds,
    "labyrinth": _labyrinth,
    "crystals": _crystals,
    "lattice": _lattice,
    "text": _text,
    "line-space": _line_space,
    "nanoparticles": _nanoparticles,
    "ic-contacts": _ic_contacts,
    "disc-tracks": _disc_tracks,
    "bars": _bars,
}
