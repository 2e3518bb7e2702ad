"""Refine label maps along image edges by a dense CRF (pydensecrf2, which is optional)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from joblib import Parallel, delayed
from torch import Tensor

from cause_lite.runtime.files import UserError


def dense_crf(
    image: UInt8[np.ndarray, "h w 3"], log_probs: Float[np.ndarray, "n h w"], iterations: int = 10
) -> Float[np.ndarray, "n h w"]:
    """Return the marginals (n, H, W) of a fully connected CRF on an RGB image and log-probabilities of its pixels.

    The constants are the release's, which are STEGO's: a Gaussian term (sxy 1, compat 3) and a bilateral term
    (sxy 67, srgb 3, compat 4).

    Raises
    ------
    UserError
        When pydensecrf2 is not installed.
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


def refined_labels(image: UInt8[np.ndarray, "h w 3"], log_probs: Float[np.ndarray, "n h w"]) -> Int[np.ndarray, "h w"]:
    """Return the most probable cluster of each pixel after the CRF."""
    return dense_crf(image, log_probs).argmax(0)


def refine_batch(
    similarities: Float[Tensor, "b n h w"], images: UInt8[np.ndarray, "b h w 3"], alpha: float = 3.0
) -> Int[Tensor, "b h w"]:
    """Return refined clusters from the cosine of each pixel to each cluster; images are shared among the CPU's cores.

    The log-probabilities are log softmax(`alpha` x cosine), as in `ClusterProbe.log_probs`.
    """
    log_probs = torch.log_softmax(alpha * similarities, dim=1).cpu().numpy()
    pairs = zip(np.asarray(images), log_probs, strict=True)
    return torch.from_numpy(np.stack(Parallel(n_jobs=-1)(delayed(refined_labels)(*pair) for pair in pairs)))
