"""What every backbone is: a frozen network, images -> patch features (B, P, D)."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, UInt8
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from cause_lite.runtime.precision import autocast, working_type

IMAGE_MEAN, IMAGE_STD = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
Colour = tuple[float, ...]  # a value for each of red, green and blue


class Backbone(nn.Module):
    """A frozen network; a subclass turns images in 0..1 (B, 3, H, W) into patch features (B, P, D).

    Parameters
    ----------
    network
        What computes, on normalised images; `prepare` compiles it.
    name
        What `load_backbone` finds it by.
    mean, std
        Mean and deviation of each colour channel, for values in 0..1.

    Attributes
    ----------
    patch
        Pixels a side of a patch.
    dim
        D, channels of a feature.
    """

    patch: int
    dim: int
    precision: str = "fp32"
    mean: Tensor
    std: Tensor

    def __init__(self, network: Callable[[Tensor], Any], name: str, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.name, self._plain = name, network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.prepare()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that images are computed in."""
        return working_type(self.precision)

    def prepare(self, precision: str = "fp32", compiled: bool = False) -> None:
        """Run in fp64, fp32, bf16 or fp16, and compiled or not, from here on; features differ in their last bits."""
        self.precision, self.compiled = precision, compiled
        self.to(self.dtype)
        self._network = torch.compile(self._plain) if compiled else self._plain
        if self.device.type != "cpu":  # images come with their channels last, and a GPU convolves them so
            self.to(memory_format=torch.channels_last)

    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n p d"]:
        """Return half-precision features of a batch of images, on the CPU."""
        return self.device_features(torch.from_numpy(np.ascontiguousarray(images)).to(self.device)).cpu()

    def device_features(self, images: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n p d"]:
        """Return half-precision features of images that are on the backbone's device, and leave them there."""
        with autocast(self.precision, images.device):
            return self(images.permute(0, 3, 1, 2).to(self.dtype) / 255).half()

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the features of an image, as hexadecimal digits.

        It covers every weight, every plain setting of every module (patch, window and precision included), the kind
        of device, and the versions of timm and torch. The name is left out: it decides nothing.
        """
        digest = hashlib.sha256(f"timm {timm.__version__} torch {torch.__version__} {self.device.type}".encode())
        for path, module in self.named_modules():
            digest.update(f"\n{path}: {type(module).__qualname__} {sorted(_settings(module))}".encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(f"\n{name}: {weight.dtype} {tuple(weight.shape)} ".encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each attribute that is a number, a text, a choice, or a sequence of them."""
    for name, value in vars(module).items():
        parts = value if isinstance(value, tuple | list) else (value,)
        plain = all(isinstance(part, bool | int | float | str | enum.Enum | None) for part in parts)
        if plain and not name.startswith("_") and name not in ("name", "training"):
            yield name, repr(value)
