"""The photographs that ship: animals, plants and boats of Caltech-101 (CC BY 4.0), one a category, drawn by a seed.

They show what a segmenter does. Nothing is scored or tuned on them, and the segmenter of photographs has not seen them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.runtime.files import UserError, project_dir

CATEGORIES = (
    "beaver",
    "bonsai",
    "cougar_body",
    "crab",
    "crocodile",
    "dalmatian",
    "dolphin",
    "dragonfly",
    "elephant",
    "emu",
    "flamingo",
    "gerenuk",
    "hawksbill",
    "hedgehog",
    "ibis",
    "joshua_tree",
    "kangaroo",
    "ketch",
    "llama",
    "lotus",
    "okapi",
    "pigeon",
    "rhino",
    "schooner",
    "sunflower",
    "water_lilly",
    "wild_cat",
)
SHORT_SIDE = 180  # pixels; smaller photographs are not drawn
SIDE = 64  # of the small copy whose border and colours are looked at


def draw(folder: Path, seed: int) -> list[Path]:
    """Draw one photograph of each category at random.

    Pictures are passed over that are small, grey, or cut out on a plain background.

    Parameters
    ----------
    folder
        101_ObjectCategories of Caltech-101.
    seed
        Of the draw.

    Raises
    ------
    UserError
        Naming a category without a photograph that could be drawn.
    """
    rng, drawn = np.random.default_rng(seed), []
    for category in CATEGORIES:
        files = [path for path in sorted((folder / category).glob("*.jpg")) if _is_scene(path)]
        if not files:
            raise UserError(f"{folder / category}: holds no photograph to draw")
        drawn.append(files[rng.integers(len(files))])
    return drawn


def _is_scene(path: Path) -> bool:
    """Return whether a picture is a coloured photograph whose border is not a plain background."""
    with Image.open(path) as image:
        if image.mode != "RGB" or min(image.size) < SHORT_SIDE:
            return False
        small = np.asarray(image.resize((SIDE, SIDE)), dtype=float)
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    light = border.mean(1)
    plain = (light > 245).mean() > 0.1 or (light < 10).mean() > 0.3 or border.std(0).mean() < 25
    return not plain and np.abs(small[..., 0] - small[..., 2]).mean() > 6


def photographs() -> list[Path]:
    """Return the files of the photographs that ship, by name; data/photographs/CREDITS.md says whose they are."""
    return sorted((project_dir() / "data" / "photographs").glob("*.jpg"))


def some_photographs(count: int, seed: int) -> list[Path]:
    """Draw some of the photographs that ship at random, so that nobody chooses which results are shown."""
    files = photographs()
    return [files[number] for number in sorted(np.random.default_rng(seed).choice(len(files), count, replace=False))]
