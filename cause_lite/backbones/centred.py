"""A backbone whose features are centred: the mean patch of some photographs is subtracted from each.

The features of a network share a large common part, so that all cosines are high. Centred, they spread around 0, and
thresholds on cosines tell patches apart. The centre is part of the backbone: its fingerprint covers it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cause_lite.backbones.backbone import Backbone


class CentredBackbone(Backbone):
    """A backbone and its centre (D,). Features on disk are those of the plain backbone, so any centre can use them."""

    centre: Tensor

    def __init__(self, plain: Backbone, centre: Float[Tensor, " d"], name: str) -> None:
        super().__init__(plain.forward, name, (0.0,) * 3, (1.0,) * 3)
        self.plain, self.patch, self.dim = plain, plain.patch, plain.dim
        self.precision, self.compiled = plain.precision, plain.compiled
        self.register_buffer("centre", centre.float())

    def prepare(self, precision: str = "fp32", compiled: bool = False) -> None:
        """Run in fp64, fp32, bf16 or fp16, and compiled or not, from here on; features differ in their last bits."""
        self.precision, self.compiled = precision, compiled
        for part in self.children():
            if isinstance(part, Backbone):
                part.prepare(precision, compiled)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Return centred patch features of images with values in 0..1."""
        return self.plain(images) - self.centre  # which is kept in single precision

    def features(self, images: np.ndarray) -> Float[Tensor, "n p d"]:
        """Return half-precision features of images (N, H, W, 3) uint8, on the CPU."""
        return subtract(self.plain.features(images), self.centre)


def subtract(features: Float[Tensor, "n p d"], centre: Float[Tensor, " d"]) -> Float[Tensor, "n p d"]:
    """Subtract a centre in full precision, and return the precision of the features."""
    return (features.float() - centre.cpu()).to(features.dtype)
