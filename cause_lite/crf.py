"""An optional dense CRF that snaps label maps to image edges (pydensecrf2; the release's constants)."""

from __future__ import annotations

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from cause_lite.runtime.files import UserError


def dense_crf(image: np.ndarray, log_probs: np.ndarray, iterations: int = 10) -> np.ndarray:
    """Refine log-probabilities (n, H, W) by an RGB image (H, W, 3) uint8 -> marginals (n, H, W).

    Gaussian term: sxy 1, compat 3; bilateral term: sxy 67, srgb 3, compat 4 (STEGO's settings).
    Raises UserError when pydensecrf2 is not installed.
    """
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise UserError(
            "the CRF needs pydensecrf2; install it with `pip install cause-lite[crf]` or leave --crf out"
        ) from error
    classes, height, width = log_probs.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-log_probs.reshape(classes, -1), dtype=np.float32))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, compat=4, rgbim=np.ascontiguousarray(image))
    return np.array(crf.inference(iterations)).reshape(classes, height, width)


def refine_batch(similarities: Tensor, images: np.ndarray, alpha: float = 3.0) -> Tensor:
    """Cosines to clusters (B, n, H, W) and images (B, H, W, 3) -> refined clusters (B, H, W); a process a core."""
    log_probs = torch.log_softmax(alpha * similarities, dim=1).cpu().numpy()
    pairs = zip(np.asarray(images), log_probs, strict=True)
    return torch.from_numpy(np.stack(Parallel(n_jobs=-1)(delayed(refined_labels)(*pair) for pair in pairs)))


def refined_labels(image: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """The likeliest cluster of each pixel after the CRF, (H, W)."""
    return dense_crf(image, log_probs).argmax(0)
