"""Patch features as colours."""

from __future__ import annotations

import numpy as np
import torch

FIT_VECTORS = 5000  # that the components are computed from, about


def pca_colours(features: torch.Tensor) -> np.ndarray:
    """Return the first three principal components of patch features as red, green and blue.

    Each component is stretched so that its 2nd and 98th percentile become 0 and 1.

    Parameters
    ----------
    features
        Patch features (N, P, D), P a square number.

    Returns
    -------
    ndarray
        Colours (N, sqrt(P), sqrt(P), 3) in 0..1.
    """
    flat = features.float().flatten(0, 1)
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat[:: max(1, len(flat) // FIT_VECTORS)], full_matrices=False)
    parts = flat @ directions[:3].T
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    side = round(features.shape[1] ** 0.5)
    return ((parts - low) / (high - low)).clamp(0, 1).view(len(features), side, side, 3).numpy()
