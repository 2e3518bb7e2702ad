"""Colours and textures: palettes of each class, fractal noise, and the surface of each kind of ground and sky."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cause_lite.datasets.scenes.taxonomy import VIEWS

TINTS, PALETTES = VIEWS["tints"], VIEWS["palettes"]


@lru_cache(maxsize=256)
def _upsampler(size: int, cells: int) -> np.ndarray:
    """Return weights (size, cells + 1) that interpolate a lattice smoothly to pixels."""
    at = (np.arange(size) + 0.5) / size * cells
    left = np.minimum(at.astype(int), cells - 1)
    share = at - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((size, cells + 1))
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] += share
    return weights


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float], octaves: int = 1) -> np.ndarray:
    """Draw fractal value noise (h, w) of about -1 to 1.

    `cells` are bumps down and across in the first octave; each further one has twice as many at half the weight.
    """
    total, weight = np.zeros(shape), 0.0
    for octave in range(octaves):
        down = min(max(1, round(cells[0] * 2**octave)), shape[0])
        across = min(max(1, round(cells[1] * 2**octave)), shape[1])
        lattice = rng.uniform(-1, 1, (down + 1, across + 1))
        total += 0.5**octave * (_upsampler(shape[0], down) @ lattice @ _upsampler(shape[1], across).T)
        weight += 0.5**octave
    return total / weight * 1.6


def tint(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Draw a colour (3,) of a class, 0 to 1: one of its palette, blended towards another, and jittered."""
    first, second = rng.choice(PALETTES[kind], 2)
    share = rng.uniform(0, 0.45)
    colour = (1 - share) * np.array(TINTS[first]) + share * np.array(TINTS[second])
    return np.clip(colour * rng.uniform(0.8, 1.2) + rng.normal(0, 0.03, 3), 0.03, 1)


def shade(colour: np.ndarray, field: np.ndarray, contrast: float) -> np.ndarray:
    """Return a colour (3,) times 1 + contrast x field (h, w), as (h, w, 3)."""
    return colour * (1 + contrast * field)[..., None]


def sky_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint a sky (h, w, 3) whose colour changes from top to bottom."""
    top, bottom = tint(rng, "sky"), tint(rng, "sky")
    down = np.linspace(0, 1, shape[0])[:, None, None]
    blend = (1 - down) * top + down * (0.4 * top + 0.6 * bottom)
    return blend * (1 + 0.03 * noise(rng, shape, (2, 2)))[..., None]


def cloud_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint billows (h, w, 3)."""
    return shade(tint(rng, "cloud") * 1.05, noise(rng, shape, (7, 5), 3), 0.16)


def mountain_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint rock with ridges (h, w, 3)."""
    ridges = 1 - 2 * np.abs(noise(rng, shape, (5, 8), 3))
    return shade(tint(rng, "mountain"), ridges, 0.35)


def grass_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint blades of grass (h, w, 3), higher than wide."""
    blades = noise(rng, shape, (shape[0] / 5, shape[1] / 1.5))
    return shade(tint(rng, "grass"), 0.75 * blades + 0.4 * noise(rng, shape, (4, 4), 2), 0.34)


def sand_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint grains on dunes (h, w, 3)."""
    grains = rng.normal(0, 1, shape)
    dunes = noise(rng, shape, (4, 2), 2)
    return shade(tint(rng, "sand"), 0.45 * grains + 0.9 * dunes, 0.12)


def water_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint waves with glints (h, w, 3)."""
    waves = noise(rng, shape, (shape[0] / 2.5, 9), 1) + 0.6 * noise(rng, shape, (shape[0] / 5, 4))
    glints = np.clip(waves - 0.9, 0, 1) * rng.uniform(0.2, 1.0)
    return shade(tint(rng, "water"), waves, 0.17) + glints[..., None]


def road_surface(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint fine gravel with worn patches (h, w, 3)."""
    fine = noise(rng, shape, (shape[0] / 2, shape[1] / 2))
    return shade(tint(rng, "road"), 0.5 * fine + 0.6 * noise(rng, shape, (3, 3)), 0.07)


def leaf_surface(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Paint clumps of leaves (h, w, 3): of a tree coarse with deep shadows, of a bush fine and speckled."""
    size, contrast = (3.6, 0.50) if kind == "tree" else (2.0, 0.26)
    clumps = noise(rng, shape, (shape[0] / size, shape[1] / size), 2)
    surface = shade(tint(rng, kind), clumps + 0.3 * noise(rng, shape, (3, 3)), contrast)
    if kind == "bush" and rng.random() < 0.5:
        flowers = rng.random(shape) < 0.05
        surface[flowers] = tint(rng, "person")
    return surface
