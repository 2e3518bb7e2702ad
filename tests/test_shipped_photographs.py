"""The photographs that ship: free ones, drawn by a seed; and the segmenter that has not seen them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cause_lite.datasets import photographs
from cause_lite.runtime.files import UserError, project_dir


@pytest.fixture
def categories(tmp_path):
    """A photograph, a grey one, a small one and a cut-out of each category; all but the first are to be passed over."""
    rng = np.random.default_rng(0)
    for category in photographs.CATEGORIES:
        folder = tmp_path / category
        folder.mkdir()
        noise = rng.integers(0, 256, (200, 240, 3), np.uint8)
        grey = np.repeat(noise[..., :1], 3, axis=2)
        cut_out = np.full_like(noise, 255)
        cut_out[40:160, 40:200] = noise[40:160, 40:200]
        pictures = {"grey": grey, "scene": np.repeat(np.repeat(noise[:5, :6], 40, 0), 40, 1), "cut-out": cut_out}
        for name, picture in pictures.items():
            Image.fromarray(picture).save(folder / f"{name}.jpg")
        Image.fromarray(noise[:100]).save(folder / "small.jpg")
    return tmp_path


def test_a_photograph_is_drawn_of_each_category(categories):
    drawn = photographs.draw(categories, 0)
    assert [path.parent.name for path in drawn] == list(photographs.CATEGORIES)
    assert {path.stem for path in drawn} == {"scene"}
    (categories / "crab" / "scene.jpg").unlink()
    with pytest.raises(UserError, match="crab: holds no photograph to draw"):
        photographs.draw(categories, 0)


def test_every_photograph_that_ships_is_credited():
    credits = (project_dir() / "data" / "photographs" / "CREDITS.md").read_text(encoding="utf-8")
    files = photographs.photographs()
    assert [path.stem for path in files] == sorted(photographs.CATEGORIES)
    assert all(f"| {path.name} | {path.stem}/image_" in credits for path in files)
    assert "creativecommons.org/licenses/by/4.0" in credits
