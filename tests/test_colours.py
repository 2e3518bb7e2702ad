"""Colours of label maps, and that segmenting starts without what only figures, tables and training need."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.lab.colours import CHROMA, LIGHTNESS, colourise, palette

UNNEEDED = ("matplotlib", "pandas", "seaborn", "sklearn")


def test_segmenting_imports_no_plotting_and_no_training():
    """In a fresh process, all modules that `segment_files` imports; a model is loaded and used too."""
    code = f"""
import sys
import numpy as np
from cause_lite import checkpoints
from cause_lite.lab import segmenting
checkpoints.load("scenes").segment(np.zeros((128, 128, 3), np.uint8))
segmenting.colourise(np.zeros((4, 4), np.uint8))
print(*(name for name in {UNNEEDED} if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@given(count=st.integers(1, 64))
def test_colours_are_distinct(count):
    colours = palette(count)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == count


def oklab(colours: np.ndarray) -> np.ndarray:
    """Lightness, a and b of sRGB colours, by the published matrices of the other direction."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cones += [[0.0883024619, 0.2817188376, 0.6299787005]]
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab += [[0.0259040371, 0.7827717662, -0.8086757660]]
    return np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T


def test_colours_have_their_lightness_and_chroma():
    """But for what lies outside sRGB and is clipped."""
    lightness, a, b = oklab(palette(30)).T
    assert np.abs(lightness - np.tile(LIGHTNESS, 10)).max() < 0.02
    assert np.quantile(np.abs(np.hypot(a, b) - CHROMA), 0.5) < 0.005
    assert np.abs(np.hypot(a, b) - CHROMA).max() < 0.05


def test_labels_become_colours():
    labels = np.array([[0, 1], [2, -1]])
    colours = colourise(labels)
    assert (colours[labels >= 0] == palette(3)).all() and (colours[1, 1] == 30).all()
    image = np.full((2, 2, 3), 200, np.uint8)
    blended = colourise(labels, image).astype(int)
    assert (np.abs(blended - (0.45 * image + 0.55 * colours)) <= 1).all()
    assert (colourise(labels, classes=9)[0, 0] == palette(9)[0]).all()
