"""What every backbone is: a frozen network, images -> patch features (B, P, D)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from cause_lite.runtime.precision import autocast

IMAGE_MEAN, IMAGE_STD = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class Backbone(nn.Module):
    """A frozen network, images -> patch features. `patch` is a patch's side in pixels, `dim` its features' length."""

    patch: int
    dim: int
    mean: Tensor
    std: Tensor

    def __init__(self, network: Callable[[Tensor], Any], name: str, mean: tuple, std: tuple) -> None:
        super().__init__()
        self.name, self.precision = name, "fp32"
        self._plain = self._network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def prepare(self, precision: str = "fp32", compiled: bool = False) -> None:
        """Run in fp32, bf16 or fp16, and compiled or not, from here on; features differ in their last bits."""
        self.precision = precision
        self._network = torch.compile(self._plain) if compiled else self._plain

    def features(self, images: np.ndarray) -> Float[Tensor, "n p d"]:
        """A batch of images (N, H, W, 3) uint8 -> half-precision features (N, P, D) on the CPU."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.mean.device)
        with autocast(self.precision, batch.device):
            return self(batch.permute(0, 3, 1, 2).float() / 255).half().cpu()

    def fingerprint(self) -> str:
        """A hash of every weight and setting, so that cached features are never taken for another backbone's."""
        digest = hashlib.sha256((self.about() + ("" if self.precision == "fp32" else f" {self.precision}")).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def about(self) -> str:
        """The settings beside the weights that decide the features."""
        raise NotImplementedError
