"""The embedded data set `scenes`: rendered outdoor views, determined by a seed, nothing downloaded.

Every image is painted back to front with numpy: sky, relief, ground, roads, then
objects in order of depth with cast shadows, and at last haze, light and sensor
noise. Classes share tints (a blue car, a blue sky, blue water) and vary in tint
(green, autumn and dead trees), so that colour alone does not name a class;
texture, shape and context do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

FINE_CLASSES = (
    "sky", "cloud", "mountain", "grass", "sand", "water", "road", "tree",
    "bush", "house", "tower", "car", "bus", "boat", "person", "animal",
)  # fmt: skip
COARSE_CLASSES = ("air", "land", "water", "road", "plant", "building", "vehicle", "being")
FINE_TO_COARSE = (0, 0, 1, 1, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 7, 7)
SPLITS = {"train": 1000, "val": 200, "pretrain": 4000, "test": 200}  # nothing was chosen by looking at test
IMAGE_SIZE = 128

CLASS = {name: index for index, name in enumerate(FINE_CLASSES)}

# Tints in linear-ish RGB, 0..1. Several classes draw from the same ones on purpose.
TINTS = {
    "blue": (0.30, 0.47, 0.75), "pale": (0.68, 0.78, 0.88), "grey": (0.55, 0.56, 0.58),
    "dusk": (0.86, 0.58, 0.44), "violet": (0.52, 0.44, 0.60), "green": (0.30, 0.48, 0.22),
    "olive": (0.48, 0.49, 0.24), "straw": (0.74, 0.65, 0.38), "tan": (0.72, 0.59, 0.42),
    "brown": (0.42, 0.30, 0.21), "rust": (0.62, 0.30, 0.17), "red": (0.70, 0.16, 0.15),
    "teal": (0.22, 0.47, 0.47), "dark": (0.16, 0.17, 0.19), "white": (0.90, 0.90, 0.87),
    "yellow": (0.85, 0.70, 0.20),
}  # fmt: skip
PALETTES = {
    "sky": ("blue", "pale", "grey", "dusk", "violet"),
    "cloud": ("white", "grey", "pale", "dusk"),
    "mountain": ("grey", "brown", "violet", "green", "blue", "tan"),
    "grass": ("green", "olive", "straw", "tan"),
    "sand": ("tan", "straw", "grey", "rust", "brown"),
    "water": ("blue", "teal", "grey", "green", "dusk", "pale"),
    "road": ("grey", "dark", "brown", "tan", "pale"),
    "tree": ("green", "olive", "rust", "brown", "yellow", "dark"),
    "bush": ("green", "olive", "teal", "rust", "straw"),
    "house": ("white", "tan", "rust", "red", "yellow", "grey", "teal"),
    "tower": ("grey", "blue", "tan", "teal", "dark", "white", "brown"),
    "car": ("red", "blue", "white", "dark", "grey", "green", "yellow"),
    "bus": ("red", "yellow", "blue", "green", "white"),
    "boat": ("white", "red", "blue", "brown", "dark", "yellow"),
    "person": ("red", "blue", "white", "dark", "yellow", "green", "violet"),
    "animal": ("brown", "white", "dark", "tan", "rust", "grey"),
}


@dataclass(frozen=True)
class Scene:
    """One rendered view: `image` (S, S, 3) uint8 and fine `labels` (S, S) uint8."""

    image: np.ndarray
    labels: np.ndarray


@lru_cache(maxsize=256)
def _upsampler(size: int, cells: int) -> np.ndarray:
    """Rows of smooth interpolation weights, (size, cells + 1), from a lattice to pixels."""
    at = (np.arange(size) + 0.5) / size * cells
    left = np.minimum(at.astype(int), cells - 1)
    share = at - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((size, cells + 1), dtype=np.float32)
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] += share
    return weights


def noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    cells: tuple[float, float],
    octaves: int = 1,
) -> np.ndarray:
    """Fractal value noise of the given pixel shape, about -1..1, (cells) bumps down and across."""
    total, weight = np.zeros(shape, dtype=np.float32), 0.0
    for octave in range(octaves):
        down = min(max(1, round(cells[0] * 2**octave)), shape[0])
        across = min(max(1, round(cells[1] * 2**octave)), shape[1])
        lattice = rng.uniform(-1, 1, (down + 1, across + 1)).astype(np.float32)
        total += 0.5**octave * (_upsampler(shape[0], down) @ lattice @ _upsampler(shape[1], across).T)
        weight += 0.5**octave
    return total / weight * 1.6


def tint(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A random colour of a class: one of its palette, blended towards another, and jittered."""
    first, second = rng.choice(PALETTES[kind], 2)
    share = rng.uniform(0, 0.45)
    colour = (1 - share) * np.array(TINTS[first]) + share * np.array(TINTS[second])
    return np.clip(colour * rng.uniform(0.8, 1.2) + rng.normal(0, 0.03, 3), 0.03, 1).astype(np.float32)


def shade(colour: np.ndarray, field: np.ndarray, contrast: float) -> np.ndarray:
    """Colour (3,) times 1 + contrast x field (h, w) -> (h, w, 3)."""
    return colour * (1 + contrast * field)[..., None]


# --- surfaces: (rng, shape) -> (h, w, 3) colours -----------------------------------------


def sky_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    top, bottom = tint(rng, "sky"), tint(rng, "sky")
    down = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    blend = (1 - down) * top + down * (0.4 * top + 0.6 * bottom)
    return blend * (1 + 0.03 * noise(rng, shape, (2, 2)))[..., None]


def cloud_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return shade(tint(rng, "cloud") * 1.05, noise(rng, shape, (7, 5), 3), 0.16)


def mountain_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    ridges = 1 - 2 * np.abs(noise(rng, shape, (5, 8), 3))
    return shade(tint(rng, "mountain"), ridges, 0.35)


def grass_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    blades = noise(rng, shape, (shape[0] / 5, shape[1] / 1.5))
    return shade(tint(rng, "grass"), 0.75 * blades + 0.4 * noise(rng, shape, (4, 4), 2), 0.34)


def sand_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    grains = rng.normal(0, 1, shape).astype(np.float32)
    dunes = noise(rng, shape, (4, 2), 2)
    return shade(tint(rng, "sand"), 0.45 * grains + 0.9 * dunes, 0.12)


def water_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    waves = noise(rng, shape, (shape[0] / 2.5, 9), 1) + 0.6 * noise(rng, shape, (shape[0] / 5, 4))
    glints = np.clip(waves - 0.9, 0, 1) * rng.uniform(0.2, 1.0)
    return shade(tint(rng, "water"), waves, 0.17) + glints[..., None]


def road_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    fine = noise(rng, shape, (shape[0] / 2, shape[1] / 2))
    return shade(tint(rng, "road"), 0.5 * fine + 0.6 * noise(rng, shape, (3, 3)), 0.07)


def leaf_surface(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Clumps of leaves for trees (coarse, deep shadows) and bushes (fine, speckled)."""
    size, contrast = (3.6, 0.50) if kind == "tree" else (2.0, 0.26)
    clumps = noise(rng, shape, (shape[0] / size, shape[1] / size), 2)
    surface = shade(tint(rng, kind), clumps + 0.3 * noise(rng, shape, (3, 3)), contrast)
    if kind == "bush" and rng.random() < 0.5:
        flowers = rng.random(shape) < 0.05
        surface[flowers] = tint(rng, "person")
    return surface


# --- objects: (rng, h, w) -> colours (h, w, 3), mask (h, w); u right, v down, both 0..1 ---

Sprite = tuple[np.ndarray, np.ndarray]


def _grid(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    v = (np.arange(h, dtype=np.float32)[:, None] + 0.5) / h
    u = (np.arange(w, dtype=np.float32)[None, :] + 0.5) / w
    return np.broadcast_to(u, (h, w)), np.broadcast_to(v, (h, w))


def _disc(u: np.ndarray, v: np.ndarray, cu: float, cv: float, ru: float, rv: float) -> np.ndarray:
    return ((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 < 1


def _box(u: np.ndarray, v: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return (u > left) & (u < right) & (v > top) & (v < bottom)


def _windows(u: np.ndarray, v: np.ndarray, across: int, down: int, fill: float) -> np.ndarray:
    return (np.abs((u * across) % 1 - 0.5) < fill / 2) & (np.abs((v * down) % 1 - 0.5) < fill / 2)


def tree_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    wobble = 0.16 * noise(rng, (h, w), (6, 6), 2)
    if rng.random() < 0.35:  # a conifer
        crown = (np.abs(u - 0.5) + 0.4 * wobble < 0.06 + 0.42 * v) & (v < 0.86)
    else:
        crown = _disc(u, v + wobble, 0.5 + rng.normal(0, 0.04), 0.36, 0.44, 0.36)
        crown |= _disc(u, v + wobble, rng.uniform(0.3, 0.7), 0.5, 0.34, 0.26)
    trunk = _box(u, v, 0.44, 0.5, 0.56, 1.0)
    colours = leaf_surface(rng, (h, w), "tree")
    bark = trunk & ~crown
    colours[bark] = TINTS["brown"] * (0.6 + 0.3 * rng.random((int(bark.sum()), 1)))
    return colours * (1.25 - 0.5 * v)[..., None], crown | trunk


def bush_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    outline = 0.35 + 0.18 * noise(rng, (1, w), (1, 4), 2)[0] + 0.9 * (u[0] - 0.5) ** 2
    return leaf_surface(rng, (h, w), "bush") * (1.15 - 0.35 * v)[..., None], v > outline


def house_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    eaves = rng.uniform(0.32, 0.45)
    wall = _box(u, v, 0.07, eaves, 0.93, 1.0)
    flat = rng.uniform(0.0, 0.25)
    roof = (v <= eaves) & (np.abs(u - 0.5) < flat + (0.5 - flat) * v / eaves)
    rows = np.sin(v * h * 2 * np.pi / rng.uniform(3.0, 4.5))
    colours = shade(tint(rng, "house"), rows + 0.3 * noise(rng, (h, w), (h / 2, w / 2)), 0.13)
    tiles = np.sin(v * h * 2 * np.pi / 3) * np.sin(u * w * 2 * np.pi / 4)
    colours[roof] = shade(tint(rng, "house") * 0.65, tiles, 0.25)[roof]
    panes = wall & _windows(u, (v - eaves) / (1 - eaves), int(rng.integers(2, 5)), int(rng.integers(1, 3)), 0.42)
    colours[panes] = TINTS["dark"] if rng.random() < 0.7 else TINTS["yellow"]
    return colours, wall | roof


def tower_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    across, down = max(2, round(w / rng.uniform(4, 6))), max(3, round(h / rng.uniform(4, 6)))
    glass = _windows(u, v, across, down, rng.uniform(0.55, 0.75))
    colours = shade(tint(rng, "tower"), noise(rng, (h, w), (3, 2)), 0.08)
    pane = tint(rng, "tower") * 0.55
    colours[glass] = (pane * (1 + 0.3 * noise(rng, (h, w), (down, across)))[..., None])[glass]
    return colours, _box(u, v, 0.03, rng.uniform(0, 0.08), 0.97, 1.0)


def _wheels(colours: np.ndarray, mask: np.ndarray, u: np.ndarray, v: np.ndarray, ru: float, rv: float) -> None:
    for centre in (0.22, 0.78):
        wheel = _disc(u, v, centre, 1 - rv, ru, rv)
        colours[wheel] = TINTS["dark"]
        colours[_disc(u, v, centre, 1 - rv, ru / 2.2, rv / 2.2)] = TINTS["grey"]
        mask |= wheel


def car_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    slope = rng.uniform(0.4, 0.8)
    cabin = (v > 0.05) & (v <= 0.5) & (np.abs(u - 0.48) < 0.2 + slope * 0.3 * v)
    body = _box(u, v, 0.01, 0.42, 0.99, 0.86)
    mask = cabin | body
    gloss = np.exp(-(((v - 0.5) / 0.07) ** 2)) - 0.6 * (v > 0.7)
    colours = shade(tint(rng, "car"), gloss, 0.4)
    pane = (v > 0.13) & (v < 0.44) & (np.abs(u - 0.48) < 0.14 + slope * 0.3 * v) & (np.abs(u - 0.48) > 0.02)
    colours[pane] = np.array(TINTS["dark"]) * 1.5
    colours[_box(u, v, 0.93, 0.5, 0.99, 0.62)] = TINTS["yellow"]
    _wheels(colours, mask, u, v, 0.11, 0.2)
    return (colours[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (colours, mask)


def bus_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    mask = _box(u, v, 0.01, 0.02, 0.99, 0.9)
    colours = shade(tint(rng, "bus"), noise(rng, (h, w), (2, 2)), 0.06)
    stripe = (v > 0.58) & (v < 0.68)
    colours[stripe] = TINTS["white"] if rng.random() < 0.5 else TINTS["dark"]
    panes = (v > 0.16) & (v < 0.48) & (np.abs((u * rng.integers(5, 8)) % 1 - 0.5) < 0.38)
    colours[panes] = np.array(TINTS["dark"]) * 1.3
    _wheels(colours, mask, u, v, 0.08, 0.13)
    return colours, mask


def boat_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    hull = (v > 0.72) & (np.abs(u - 0.5) < 0.49 - 0.55 * (v - 0.72))
    mast = _box(u, v, 0.48, 0.02, 0.52, 0.75)
    colours = shade(tint(rng, "boat"), np.sign(v - 0.82), 0.3)
    if rng.random() < 0.6:
        top = (v > 0.04) & (v < 0.68) & (u > 0.53 - 0.42 * v * (u < 0.5)) & (u < 0.53 + 0.42 * v)
        colours[top] = np.array(TINTS["white"]) * (0.85 + 0.2 * u[top][:, None])
    else:
        top = _box(u, v, 0.25, 0.5, 0.75, 0.75)
        colours[top] = TINTS["white"]
        colours[top & _windows(u, v * 0 + 0.5, 8, 1, 0.5) & (v > 0.56) & (v < 0.66)] = TINTS["dark"]
    colours[mast] = TINTS["brown"]
    return colours, hull | mast | top


def person_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    stride = rng.uniform(0.05, 0.2)
    head = _disc(u, v, 0.5, 0.1, 0.17, 0.095)
    torso = _disc(u, v, 0.5, 0.37, 0.36, 0.22)
    legs = (v > 0.52) & (np.abs(np.abs(u - 0.5) - 0.06 - stride * (v - 0.5) * 2) < 0.12)
    colours = shade(tint(rng, "person"), noise(rng, (h, w), (6, 3)), 0.12)
    colours[legs & ~torso] = tint(rng, "person") * 0.6
    skin = np.array([0.85, 0.65, 0.52]) * rng.uniform(0.35, 1.05)
    colours[head] = skin
    colours[torso & (np.abs(u - 0.5) > 0.27)] = skin if rng.random() < 0.5 else tint(rng, "person")
    return colours, head | torso | legs


def animal_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    u, v = _grid(h, w)
    body = _disc(u, v, 0.46, 0.45, 0.38, 0.25)
    head = _disc(u, v, 0.87, 0.25, 0.12, 0.17) | ((np.abs(u - 0.78 - 0.2 * (0.4 - v)) < 0.09) & (v > 0.15) & (v < 0.5))
    legs = (v > 0.5) & (np.minimum(np.abs(u - 0.2), np.abs(u - 0.72)) < 0.09) & (np.abs((u * 16) % 1 - 0.5) < 0.42)
    coat = noise(rng, (h, w), (4, 6))
    colours = shade(tint(rng, "animal"), coat, 0.12)
    if rng.random() < 0.55:
        colours[coat > 0.15] = tint(rng, "animal") * 0.7
    mask = body | head | legs
    colours = colours * (1.15 - 0.4 * v)[..., None]
    return (colours[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (colours, mask)


@dataclass(frozen=True)
class ObjectKind:
    """How a kind of object is drawn: height and width at the bottom edge, in image heights."""

    sprite: Callable[[np.random.Generator, int, int], Sprite]
    height: float
    aspect: float  # width / height


OBJECTS = {
    "tree": ObjectKind(tree_sprite, 0.95, 0.75),
    "bush": ObjectKind(bush_sprite, 0.30, 1.7),
    "house": ObjectKind(house_sprite, 0.85, 1.15),
    "tower": ObjectKind(tower_sprite, 1.30, 0.45),
    "car": ObjectKind(car_sprite, 0.28, 2.1),
    "bus": ObjectKind(bus_sprite, 0.48, 2.1),
    "boat": ObjectKind(boat_sprite, 0.52, 1.0),
    "person": ObjectKind(person_sprite, 0.55, 0.38),
    "animal": ObjectKind(animal_sprite, 0.34, 1.4),
}


class Canvas:
    """The picture while it is painted: colours, labels, and how much light reaches each pixel."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.colours = np.zeros((size, size, 3), dtype=np.float32)
        self.labels = np.zeros((size, size), dtype=np.uint8)
        self.light = 1 if rng.random() < 0.5 else -1  # where the sun stands: right or left
        self.horizon = rng.uniform(0.22, 0.5)
        self.haze_colour, self.haze = tint(rng, "sky"), rng.uniform(0.0, 0.55)

    def distance(self, base: float) -> float:
        """Share of the way to the horizon at height `base` (0..1, down): 0 near, 1 far."""
        return float(np.clip((1 - base) / (1 - self.horizon), 0, 1))

    def fill(self, mask: np.ndarray, colours: np.ndarray, name: str, distance: float = 0.0) -> None:
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
        u, _ = _grid(h, w)
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
        u, v = _grid(self.size, self.size)
        under = _disc(u, v, x, base - 0.005, 0.62 * width, 0.09 * width + 0.01) & (v > self.horizon)
        self.colours[under] *= 0.58


def _ridge(rng: np.random.Generator, size: int, bumps: float, octaves: int) -> np.ndarray:
    return noise(rng, (1, size), (1, bumps), octaves)[0]


def _backdrop(canvas: Canvas) -> None:
    """Sky, clouds, relief and a far line of trees."""
    rng, size, shape = canvas.rng, canvas.size, (canvas.size, canvas.size)
    _, v = _grid(size, size)
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


def _ground(canvas: Canvas, kinds: tuple[str, ...]) -> None:
    """One or two grounds; a second one begins at a slanted, wavering shore."""
    rng, size, shape = canvas.rng, canvas.size, (canvas.size, canvas.size)
    u, v = _grid(size, size)
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
    """A road to the vanishing point, or one that crosses the view."""
    rng, size, shape = canvas.rng, canvas.size, (canvas.size, canvas.size)
    u, v = _grid(size, size)
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


@dataclass(frozen=True)
class Place:
    """A kind of view: its possible grounds, how likely a road is, and what stands where how often."""

    grounds: tuple[tuple[str, ...], ...]
    road: float
    far: tuple[tuple[str, float], ...]  # stands along the horizon: kind, mean count
    near: tuple[tuple[str, float], ...]  # stands anywhere on the ground: kind, mean count


PLACES = (
    Place((("grass",), ("grass", "sand")), 0.35, (("tree", 2.5), ("house", 1.0)),
          (("animal", 2.4), ("bush", 1.5), ("tree", 0.8), ("person", 0.6), ("car", 0.3))),
    Place((("water", "sand"), ("water",), ("water", "grass")), 0.0, (("house", 0.5), ("tower", 0.4)),
          (("boat", 2.2), ("person", 1.2), ("bush", 0.7), ("tree", 0.3), ("animal", 0.4))),
    Place((("road",), ("grass",), ("sand",)), 0.85, (("tower", 3.2), ("house", 1.2), ("tree", 1.0)),
          (("car", 1.8), ("bus", 1.2), ("person", 1.6), ("bush", 0.4))),
    Place((("grass",), ("grass", "road"), ("sand", "grass")), 0.6, (("house", 2.6), ("tree", 1.6), ("bush", 1.0)),
          (("car", 1.2), ("person", 1.2), ("bush", 1.2), ("bus", 0.5), ("animal", 0.4))),
)  # fmt: skip


def _populate(canvas: Canvas, place: Place) -> None:
    """Draw the objects from far to near, so that near ones hide far ones."""
    rng, waiting = canvas.rng, []
    for kind, mean in place.far:
        for _ in range(rng.poisson(mean)):
            waiting.append((canvas.horizon + rng.uniform(0.01, 0.14), rng.uniform(0, 1), kind))
    for kind, mean in place.near:
        for _ in range(rng.poisson(mean)):
            waiting.append((rng.uniform(canvas.horizon + 0.12, 1.05), rng.uniform(0.02, 0.98), kind))
    for base, x, kind in sorted(waiting):
        row, column = min(int(base * canvas.size), canvas.size - 1), int(x * canvas.size)
        afloat = canvas.labels[row, column] == CLASS["water"]
        if kind == "boat" or not afloat:
            canvas.place(kind, x, base)


def _expose(canvas: Canvas) -> np.ndarray:
    """Cloud shadows, the colour of the light, blur and sensor noise -> (S, S, 3) uint8."""
    rng, size = canvas.rng, canvas.size
    patches = 1 + 0.22 * noise(rng, (size, size), (2, 2))
    warmth = rng.normal(0, 0.07)
    cast = np.array([1 + warmth, 1, 1 - warmth]) * rng.uniform(0.62, 1.12)
    picture = canvas.colours * patches[..., None] * cast
    picture = gaussian_filter(picture, (rng.uniform(0.3, 0.6),) * 2 + (0,))
    picture = picture + rng.normal(0, rng.uniform(0.005, 0.025), picture.shape)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def render(seed: int, split: str, index: int, size: int = IMAGE_SIZE) -> Scene:
    """Paint view `index` of a split; the same arguments give the same pixels on one machine."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    canvas = Canvas(rng, size)
    place = PLACES[int(rng.integers(len(PLACES)))]
    _backdrop(canvas)
    _ground(canvas, place.grounds[int(rng.integers(len(place.grounds)))])
    if rng.random() < place.road:
        _road(canvas)
    _populate(canvas, place)
    return Scene(_expose(canvas), canvas.labels)
