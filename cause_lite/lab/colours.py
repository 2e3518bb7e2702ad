"""Colours for label maps. No plotting library is imported here, so that segmenting starts without one."""

from __future__ import annotations

import numpy as np
from PIL import Image

INK = "#8a8a8a"  # legible on white and on the dark theme's background
IGNORED_GREY = 30  # the level of ignored pixels
BLEND = 0.55  # the share of the label's colour where it is laid over an image
CHROMA = 0.13  # colourful, and nearly always within sRGB
LIGHTNESS = (0.76, 0.50, 0.63)  # in turn, so that neighbours in number differ by more than hue
GOLDEN_RATIO = 0.618034


def palette(count: int) -> np.ndarray:
    """Return distinct colours, spread in hue and in lightness so that neighbours in number differ.

    The hues are equal steps around OKLCh, in the order of multiples of the golden ratio; OKLab is turned into sRGB
    by the matrices of B. Ottosson, "A perceptual color space for image processing", 2020,
    https://bottosson.github.io/posts/oklab/.

    Parameters
    ----------
    count
        The number of colours, at least 1.

    Returns
    -------
    ndarray
        Red, green and blue of each colour, (count, 3) uint8.
    """
    steps = np.argsort(np.arange(count) * GOLDEN_RATIO % 1)
    hue = 2 * np.pi * steps / count
    lightness = np.array(LIGHTNESS)[np.arange(count) % len(LIGHTNESS)]
    a, b = CHROMA * np.cos(hue), CHROMA * np.sin(hue)
    cones = np.stack(
        [
            (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3,
            (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3,
            (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_linear @ cones).T.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # sRGB's transfer
    return (255 * encoded).round().astype(np.uint8)


def colourise(labels: np.ndarray, image: np.ndarray | None = None, classes: int | None = None) -> np.ndarray:
    """Return a label map as colours.

    Parameters
    ----------
    labels
        Cluster or class numbers (H, W), from 0; a negative number is an ignored pixel and becomes dark.
    image
        An RGB image (H, W, 3) uint8 that the colours are blended onto.
    classes
        The number of colours to choose from; by default one more than the largest label.

    Returns
    -------
    ndarray
        Colours (H, W, 3) uint8.
    """
    table = palette(classes or int(labels.max(initial=0)) + 1)
    colours = table[np.clip(labels, 0, len(table) - 1)]
    colours[labels < 0] = IGNORED_GREY
    if image is None:
        return colours
    return np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(colours), BLEND))
