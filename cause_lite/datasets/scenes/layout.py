"""Composition: a canvas is painted back to front, from the sky to the nearest object, then exposed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from cause_lite.datasets.scenes.sprites import OBJECTS, disc, grid
from cause_lite.datasets.scenes.surfaces import (
    TINTS,
    cloud_surface,
    grass_surface,
    leaf_surface,
    mountain_surface,
    noise,
    road_surface,
    sand_surface,
    sky_surface,
    tint,
    water_surface,
)
from cause_lite.datasets.scenes.taxonomy import CLASS, IMAGE_SIZE, SPLITS, VIEWS


@dataclass(frozen=True)
class Scene:
    """One rendered view: `image` (S, S, 3) uint8 and fine `labels` (S, S) uint8."""

    image: np.ndarray
    labels: np.ndarray


class Canvas:
    """The picture while it is painted: colours, labels, and how much light reaches each pixel."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.colours = np.zeros((size, size, 3))
        self.labels = np.zeros((size, size), dtype=np.uint8)
        self.light = 1 if rng.random() < 0.5 else -1  # where the sun stands: right or left
        self.horizon = rng.uniform(0.22, 0.5)
        self.haze_colour, self.haze = tint(rng, "sky"), rng.uniform(0.0, 0.55)

    def distance(self, base: float) -> float:
        """Return the share of the way to the horizon at height `base` (0 to 1, down): 0 is near, 1 far."""
        return float(np.clip((1 - base) / (1 - self.horizon), 0, 1))

    def fill(self, mask: np.ndarray, colours: np.ndarray, name: str, distance: float = 0.0) -> None:
        """Paint a masked part with colours (S, S, 3) and label it; haze grows with `distance`."""
        veil = self.haze * distance
        self.colours[mask] = ((1 - veil) * colours + veil * self.haze_colour)[mask]
        self.labels[mask] = CLASS[name]

    def place(self, name: str, x: float, base: float) -> None:
        """Draw one object of a kind with its foot at (x, base), smaller when far, with its shadow."""
        rng, kind, size = self.rng, OBJECTS[name], self.size
        scale = (0.28 + 0.72 * (1 - self.distance(base))) * rng.uniform(0.8, 1.2)
        h = max(6, round(kind.height * scale * size))
        w = max(4, round(kind.height * scale * size * kind.aspect * rng.uniform(0.85, 1.15)))
        colours, mask = kind.sprite(rng, h, w)
        u, _ = grid(h, w)
        colours = colours * (1 + 0.22 * self.light * (2 * u - 1))[..., None]
        bottom, left = round(base * size), round(x * size - w / 2)
        self._shadow(x + 0.2 * self.light * -1 * w / size, base, w / size)
        top = bottom - h
        rows = slice(max(0, top), min(size, bottom))
        columns = slice(max(0, left), min(size, left + w))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        veil = self.haze * self.distance(base)
        shown = mask[inner]
        self.colours[rows, columns][shown] = ((1 - veil) * colours + veil * self.haze_colour)[inner][shown]
        self.labels[rows, columns][shown] = CLASS[name]

    def _shadow(self, x: float, base: float, width: float) -> None:
        """Darken the ground below an object."""
        u, v = grid(self.size, self.size)
        under = disc(u, v, x, base - 0.005, 0.62 * width, 0.09 * width + 0.01) & (v > self.horizon)
        self.colours[under] *= 0.58


def _ridge(rng: np.random.Generator, size: int, bumps: float, octaves: int) -> np.ndarray:
    """Draw a wavering line, a height for each column (S,)."""
    return noise(rng, (1, size), (1, bumps), octaves)[0]


def _backdrop(canvas: Canvas) -> None:
    """Paint sky, clouds, relief and a far line of trees."""
    rng, size, shape = canvas.rng, canvas.size, (canvas.size, canvas.size)
    _, v = grid(size, size)
    canvas.fill(np.ones(shape, dtype=bool), sky_surface(rng, shape), "sky")
    if rng.random() < 0.65:
        cover = noise(rng, shape, (5, 2.5), 3) > rng.uniform(0.1, 0.6)
        canvas.fill(cover & (v < canvas.horizon), cloud_surface(rng, shape), "cloud", 0.3)
    if rng.random() < 0.5:
        peak = canvas.horizon * rng.uniform(0.35, 0.75)
        crest = canvas.horizon - peak * np.clip(0.55 + 0.6 * _ridge(rng, size, 3, 4), 0.05, 1)
        canvas.fill((v > crest) & (v < canvas.horizon + 0.02), mountain_surface(rng, shape), "mountain", 0.9)
    if rng.random() < 0.35:
        crest = canvas.horizon - 0.07 - 0.035 * _ridge(rng, size, 14, 2)
        canvas.fill((v > crest) & (v < canvas.horizon + 0.02), leaf_surface(rng, shape, "tree"), "tree", 0.7)


def _ground(canvas: Canvas, kinds: list[str]) -> None:
    """Paint one or two grounds; the second begins at a slanted, wavering shore."""
    rng, size, shape = canvas.rng, canvas.size, (canvas.size, canvas.size)
    u, v = grid(size, size)
    surfaces = {"grass": grass_surface, "sand": sand_surface, "water": water_surface, "road": road_surface}
    below = v > canvas.horizon
    for order, kind in enumerate(kinds):
        region = below
        if order:
            middle = rng.uniform(canvas.horizon + 0.12, 0.85)
            shore = middle + rng.uniform(-0.3, 0.3) * (u - 0.5) + 0.04 * _ridge(rng, size, 3, 2)
            region = below & (v > shore)
        surface = surfaces[kind](rng, shape)
        near = np.clip((v - canvas.horizon) / (1 - canvas.horizon), 0, 1)[..., None]
        veil = canvas.haze * 0.7 * (1 - near)
        canvas.fill(region, (1 - veil) * surface + veil * canvas.haze_colour, kind)


def _road(canvas: Canvas) -> None:
    """Paint a road to the vanishing point, or one that crosses the view."""
    rng, size, shape = canvas.rng, canvas.size, (canvas.size, canvas.size)
    u, v = grid(size, size)
    depth = np.clip((v - canvas.horizon) / (1 - canvas.horizon), 0, 1)
    if rng.random() < 0.55:
        centre = rng.uniform(0.25, 0.75) * (1 - depth) + rng.uniform(0.3, 0.7) * depth
        across = (u - centre) / (0.03 + rng.uniform(0.3, 0.5) * depth)
        along = 1 / (depth + 0.1)
    else:
        top = rng.uniform(0.3, 0.55)
        across = (depth - top - rng.uniform(-0.2, 0.2) * (u - 0.5)) / rng.uniform(0.16, 0.3) - 1
        along = u * 6
    surface = road_surface(rng, shape)
    if rng.random() < 0.7:
        surface[(np.abs(across) < 0.04) & ((along * 1.5) % 1 < 0.55)] = TINTS["white"]
        surface[np.abs(np.abs(across) - 0.9) < 0.035] = TINTS["white"]
    canvas.fill((np.abs(across) < 1) & (depth > 0), surface, "road")


def _populate(canvas: Canvas, place: dict) -> None:
    """Draw the objects from far to near, so that near ones hide far ones."""
    rng, objects = canvas.rng, []
    for kind, mean in place["far"].items():
        for _ in range(rng.poisson(mean)):
            objects.append((canvas.horizon + rng.uniform(0.01, 0.14), rng.uniform(0, 1), kind))
    for kind, mean in place["near"].items():
        for _ in range(rng.poisson(mean)):
            objects.append((rng.uniform(canvas.horizon + 0.12, 1.05), rng.uniform(0.02, 0.98), kind))
    for base, x, kind in sorted(objects):
        row, column = min(int(base * canvas.size), canvas.size - 1), int(x * canvas.size)
        afloat = canvas.labels[row, column] == CLASS["water"]
        if kind == "boat" or not afloat:
            canvas.place(kind, x, base)


def _expose(canvas: Canvas) -> np.ndarray:
    """Apply cloud shadows, the colour of the light, blur and sensor noise; return (S, S, 3) uint8."""
    rng, size = canvas.rng, canvas.size
    patches = 1 + 0.22 * noise(rng, (size, size), (2, 2))
    warmth = rng.normal(0, 0.07)
    cast = np.array([1 + warmth, 1, 1 - warmth]) * rng.uniform(0.62, 1.12)
    picture = canvas.colours * patches[..., None] * cast
    picture = gaussian_filter(picture, (rng.uniform(0.3, 0.6),) * 2 + (0,))
    picture = picture + rng.normal(0, rng.uniform(0.005, 0.025), picture.shape)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def render(seed: int, split: str, index: int, size: int = IMAGE_SIZE) -> Scene:
    """Paint one view of a split; the same values give the same pixels on every processor.

    All is computed in double precision: processors differ in the last bits of sines and sums, and single
    precision would carry that to a pixel.
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    canvas = Canvas(rng, size)
    place = VIEWS["places"][int(rng.integers(len(VIEWS["places"])))]
    _backdrop(canvas)
    _ground(canvas, place["grounds"][int(rng.integers(len(place["grounds"])))])
    if rng.random() < place["road"]:
        _road(canvas)
    _populate(canvas, place)
    return Scene(_expose(canvas), canvas.labels)
