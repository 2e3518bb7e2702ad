"""Objects: each is drawn as colours (h, w, 3) and a mask (h, w); u runs right and v down, both from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cause_lite.datasets.scenes.surfaces import TINTS, leaf_surface, noise, shade, tint

Sprite = tuple[np.ndarray, np.ndarray]


def grid(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Return u and v (h, w) of each pixel centre, 0 to 1."""
    v = (np.arange(h)[:, None] + 0.5) / h
    u = (np.arange(w)[None, :] + 0.5) / w
    return np.broadcast_to(u, (h, w)), np.broadcast_to(v, (h, w))


def disc(u: np.ndarray, v: np.ndarray, cu: float, cv: float, ru: float, rv: float) -> np.ndarray:
    """Mark the pixels inside an ellipse with centre (cu, cv) and radii (ru, rv)."""
    return ((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 < 1


def box(u: np.ndarray, v: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Mark the pixels inside a rectangle."""
    return (u > left) & (u < right) & (v > top) & (v < bottom)


def windows(u: np.ndarray, v: np.ndarray, across: int, down: int, fill: float) -> np.ndarray:
    """Mark the panes of a regular grid of windows; `fill` is the share of each cell that is glass."""
    return (np.abs((u * across) % 1 - 0.5) < fill / 2) & (np.abs((v * down) % 1 - 0.5) < fill / 2)


def tree_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a conifer or a broad tree."""
    u, v = grid(h, w)
    wobble = 0.16 * noise(rng, (h, w), (6, 6), 2)
    if rng.random() < 0.35:  # a conifer
        crown = (np.abs(u - 0.5) + 0.4 * wobble < 0.06 + 0.42 * v) & (v < 0.86)
    else:
        crown = disc(u, v + wobble, 0.5 + rng.normal(0, 0.04), 0.36, 0.44, 0.36)
        crown |= disc(u, v + wobble, rng.uniform(0.3, 0.7), 0.5, 0.34, 0.26)
    trunk = box(u, v, 0.44, 0.5, 0.56, 1.0)
    colours = leaf_surface(rng, (h, w), "tree")
    bark = trunk & ~crown
    colours[bark] = TINTS["brown"] * (0.6 + 0.3 * rng.random((int(bark.sum()), 1)))
    return colours * (1.25 - 0.5 * v)[..., None], crown | trunk


def bush_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a bush with a wavering outline."""
    u, v = grid(h, w)
    outline = 0.35 + 0.18 * noise(rng, (1, w), (1, 4), 2)[0] + 0.9 * (u[0] - 0.5) ** 2
    return leaf_surface(rng, (h, w), "bush") * (1.15 - 0.35 * v)[..., None], v > outline


def house_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a house: wall, roof with tiles, windows."""
    u, v = grid(h, w)
    eaves = rng.uniform(0.32, 0.45)
    wall = box(u, v, 0.07, eaves, 0.93, 1.0)
    flat = rng.uniform(0.0, 0.25)
    roof = (v <= eaves) & (np.abs(u - 0.5) < flat + (0.5 - flat) * v / eaves)
    rows = np.sin(v * h * 2 * np.pi / rng.uniform(3.0, 4.5))
    colours = shade(tint(rng, "house"), rows + 0.3 * noise(rng, (h, w), (h / 2, w / 2)), 0.13)
    tiles = np.sin(v * h * 2 * np.pi / 3) * np.sin(u * w * 2 * np.pi / 4)
    colours[roof] = shade(tint(rng, "house") * 0.65, tiles, 0.25)[roof]
    panes = wall & windows(u, (v - eaves) / (1 - eaves), int(rng.integers(2, 5)), int(rng.integers(1, 3)), 0.42)
    colours[panes] = TINTS["dark"] if rng.random() < 0.7 else TINTS["yellow"]
    return colours, wall | roof


def tower_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a tower: a box full of windows."""
    u, v = grid(h, w)
    across, down = max(2, round(w / rng.uniform(4, 6))), max(3, round(h / rng.uniform(4, 6)))
    glass = windows(u, v, across, down, rng.uniform(0.55, 0.75))
    colours = shade(tint(rng, "tower"), noise(rng, (h, w), (3, 2)), 0.08)
    pane = tint(rng, "tower") * 0.55
    colours[glass] = (pane * (1 + 0.3 * noise(rng, (h, w), (down, across)))[..., None])[glass]
    return colours, box(u, v, 0.03, rng.uniform(0, 0.08), 0.97, 1.0)


def _wheels(colours: np.ndarray, mask: np.ndarray, u: np.ndarray, v: np.ndarray, ru: float, rv: float) -> None:
    """Draw two wheels and add them to the mask."""
    for centre in (0.22, 0.78):
        wheel = disc(u, v, centre, 1 - rv, ru, rv)
        colours[wheel] = TINTS["dark"]
        colours[disc(u, v, centre, 1 - rv, ru / 2.2, rv / 2.2)] = TINTS["grey"]
        mask |= wheel


def car_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a car that faces right or left."""
    u, v = grid(h, w)
    slope = rng.uniform(0.4, 0.8)
    cabin = (v > 0.05) & (v <= 0.5) & (np.abs(u - 0.48) < 0.2 + slope * 0.3 * v)
    body = box(u, v, 0.01, 0.42, 0.99, 0.86)
    mask = cabin | body
    gloss = np.exp(-(((v - 0.5) / 0.07) ** 2)) - 0.6 * (v > 0.7)
    colours = shade(tint(rng, "car"), gloss, 0.4)
    pane = (v > 0.13) & (v < 0.44) & (np.abs(u - 0.48) < 0.14 + slope * 0.3 * v) & (np.abs(u - 0.48) > 0.02)
    colours[pane] = np.array(TINTS["dark"]) * 1.5
    colours[box(u, v, 0.93, 0.5, 0.99, 0.62)] = TINTS["yellow"]
    _wheels(colours, mask, u, v, 0.11, 0.2)
    return (colours[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (colours, mask)


def bus_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a bus with a stripe and a row of windows."""
    u, v = grid(h, w)
    mask = box(u, v, 0.01, 0.02, 0.99, 0.9)
    colours = shade(tint(rng, "bus"), noise(rng, (h, w), (2, 2)), 0.06)
    stripe = (v > 0.58) & (v < 0.68)
    colours[stripe] = TINTS["white"] if rng.random() < 0.5 else TINTS["dark"]
    panes = (v > 0.16) & (v < 0.48) & (np.abs((u * rng.integers(5, 8)) % 1 - 0.5) < 0.38)
    colours[panes] = np.array(TINTS["dark"]) * 1.3
    _wheels(colours, mask, u, v, 0.08, 0.13)
    return colours, mask


def boat_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a boat with a sail or a cabin."""
    u, v = grid(h, w)
    hull = (v > 0.72) & (np.abs(u - 0.5) < 0.49 - 0.55 * (v - 0.72))
    mast = box(u, v, 0.48, 0.02, 0.52, 0.75)
    colours = shade(tint(rng, "boat"), np.sign(v - 0.82), 0.3)
    if rng.random() < 0.6:
        top = (v > 0.04) & (v < 0.68) & (u > 0.53 - 0.42 * v * (u < 0.5)) & (u < 0.53 + 0.42 * v)
        colours[top] = np.array(TINTS["white"]) * (0.85 + 0.2 * u[top][:, None])
    else:
        top = box(u, v, 0.25, 0.5, 0.75, 0.75)
        colours[top] = TINTS["white"]
        colours[top & windows(u, v * 0 + 0.5, 8, 1, 0.5) & (v > 0.56) & (v < 0.66)] = TINTS["dark"]
    colours[mast] = TINTS["brown"]
    return colours, hull | mast | top


def person_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a person in stride."""
    u, v = grid(h, w)
    stride = rng.uniform(0.05, 0.2)
    head = disc(u, v, 0.5, 0.1, 0.17, 0.095)
    torso = disc(u, v, 0.5, 0.37, 0.36, 0.22)
    legs = (v > 0.52) & (np.abs(np.abs(u - 0.5) - 0.06 - stride * (v - 0.5) * 2) < 0.12)
    colours = shade(tint(rng, "person"), noise(rng, (h, w), (6, 3)), 0.12)
    colours[legs & ~torso] = tint(rng, "person") * 0.6
    skin = np.array([0.85, 0.65, 0.52]) * rng.uniform(0.35, 1.05)
    colours[head] = skin
    colours[torso & (np.abs(u - 0.5) > 0.27)] = skin if rng.random() < 0.5 else tint(rng, "person")
    return colours, head | torso | legs


def animal_sprite(rng: np.random.Generator, h: int, w: int) -> Sprite:
    """Draw a four-legged animal, plain or spotted, that faces right or left."""
    u, v = grid(h, w)
    body = disc(u, v, 0.46, 0.45, 0.38, 0.25)
    head = disc(u, v, 0.87, 0.25, 0.12, 0.17) | ((np.abs(u - 0.78 - 0.2 * (0.4 - v)) < 0.09) & (v > 0.15) & (v < 0.5))
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
