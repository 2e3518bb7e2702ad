"""Ranges of values: 16-bit, 32-bit and float levels become 8-bit ones, by percentiles or by a window."""

from __future__ import annotations

import numpy as np

from cause_lite.runtime.files import UserError

PERCENTILES = (0.1, 99.9)  # of the valid values: what lies outside is a hot or dead pixel
SAMPLE = 2_000_000  # values that percentiles are taken of, evenly spread over the image


def to_bytes(
    levels: np.ndarray, valid: np.ndarray | None = None, window: tuple[float, float] | None = None
) -> tuple[np.ndarray, str | None]:
    """Scale levels to 0..255; all bands by one range, so that colours keep their hue.

    Parameters
    ----------
    levels
        (H, W) or (H, W, bands) of any real type. uint8 is taken as it is, and bool and floats of 0 to 1 as 0 to full
        intensity; other integers and floats are scaled by percentiles of their own.
    valid
        (H, W) bool: the pixels that percentiles are taken of; None: all. Values that are not finite never count.
    window
        The levels that become 0 and 255, in place of all these rules.

    Returns
    -------
    tuple[np.ndarray, str | None]
        uint8 of the same shape, and what was done to the range, None where there was nothing to decide.

    Raises
    ------
    UserError
        When no value is finite, or the window is empty.
    """
    if window is None and levels.dtype == np.uint8:
        return levels, None
    if window is None and levels.dtype == np.bool_:
        return levels.astype(np.uint8) * 255, None
    sample = _sampled(levels, valid)
    low, high = (float(sample.min()), float(sample.max())) if window is None else window
    if window is not None and not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UserError(f"window: must be two numbers LOW < HIGH, not {low:g} {high:g}")
    if window is None and levels.dtype.kind == "f" and low >= 0 and high <= 1:
        return _stretched(levels, 0.0, 1.0), None
    span = f"{low:g} to {high:g}"
    if window is None and low < high:
        inner = np.percentile(sample, PERCENTILES)
        low, high = (float(level) for level in inner) if inner[0] < inner[1] else (low, high)
    if low == high:
        return np.full(levels.shape, 128, np.uint8), f"all values are {low:g}: shown as grey"
    note = f"values of {span} are scaled from {low:g}..{high:g} to 0..255; name another range with --window LOW HIGH"
    return _stretched(levels, low, high), None if window is not None else note


def _sampled(levels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return at most about `SAMPLE` of the valid, finite values, as float64."""
    step = max(1, levels.size // SAMPLE)
    if valid is None:
        values = levels.reshape(-1)[::step]
    else:
        values = levels[valid].reshape(-1)
        values = values[:: max(1, values.size // SAMPLE)]
    values = values.astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size and step > 1:
        values = levels.astype(np.float64)
        values = values[np.isfinite(values)]
    if not values.size:
        raise UserError("holds no finite value")
    return values


def _stretched(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255; what is not finite becomes 0."""
    largest = max(abs(low), abs(high), 1e-300)
    kind: type = np.float32 if levels.dtype.itemsize <= 2 or levels.dtype == np.float32 else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        if largest > 1e30:  # keep high - low finite
            return _stretched(levels.astype(np.float64) / largest, low / largest, high / largest)
        shares = (levels.astype(kind) - low) / (high - low)
        return (np.clip(np.nan_to_num(shares, nan=0, posinf=1, neginf=0), 0, 1) * 255 + 0.5).astype(np.uint8)
