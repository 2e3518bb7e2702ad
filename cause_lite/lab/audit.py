"""What labels touch: train twice, with true and with permuted labels, compare everything, and walk the losses' graphs.

The walk names the parameters that a labelled loss trains. It cannot see a way without a gradient, such as labels in the
norm that step 2 clips by; the comparison of the two fits can.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cause_lite import checkpoints
from cause_lite.backbones.backbone import Backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.lab.runs import prepared
from cause_lite.methods import as_released
from cause_lite.methods.as_released import ReleasedOptions, fit, relabelled
from cause_lite.runtime.files import UserError
from cause_lite.segmenter import Segmenter

COMPARED_IMAGES = 64  # of the training images, those whose predictions are compared pixel by pixel


@dataclass(frozen=True)
class Audit:
    """What two fits that differ in their labels alone have in common, and what the labelled losses reach.

    Attributes
    ----------
    reached
        Parameters of the segmenter that a labelled loss sent a gradient to during the fit.
    changed
        Tensors of the segmenter that differ between the two fits.
    pixels
        The share of the predicted pixels that differ, 0..1.
    same_file
        Whether what predicts is byte for byte the same file. The linear probe, a diagnostic, is left out.
    images
        The number of images that both fits learned from.
    """

    reached: tuple[str, ...]
    changed: tuple[str, ...]
    pixels: float
    same_file: bool
    images: int

    @property
    def clean(self) -> bool:
        """Whether labels have no way to any prediction."""
        ways = [name for name in (*self.reached, *self.changed) if not name.startswith("linear_probe.")]
        return not ways and self.pixels == 0 and self.same_file


def audit_recipe(config: FitConfig, images: int) -> Audit:
    """Audit a fit of the first images of a data set; see `audit`."""
    config, train, backbone = prepared(config, "cpu")
    labels = train.labels[:images] if train.labels is not None else None
    return audit(config, replace(train, images=train.images[:images], labels=labels), backbone)


def audit(config: FitConfig, train: Split, backbone: Backbone) -> Audit:
    """Fit twice from one seed, with true and with permuted labels, and compare the fits.

    Raises
    ------
    UserError
        When there are no labels, or when permuting them changes nothing.
    """
    if train.labels is None:
        raise UserError(f"{train.name}: has no labels, so there is nothing that they could touch")
    labels = np.asarray(train.labels[:])
    permuted = relabelled(labels, ReleasedOptions(labels="other images"), np.random.default_rng(config.seed))
    if np.array_equal(labels, permuted):
        raise UserError(f"{train.name}: permuting the labels of {len(train)} images changes nothing; take more images")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=as_released.WARNING)  # the audit is about it
        with labelled_leaves() as reached:
            first = fit(config, train.with_labels(labels), backbone).segmenter
        second = fit(config, train.with_labels(permuted), backbone).segmenter
    names = tuple(name for name, value in first.named_parameters() if id(value) in reached)
    states = [
        {name: value for name, value in segmenter.state_dict().items() if not name.startswith("backbone.")}
        for segmenter in (first, second)
    ]
    changed = tuple(name for name, value in states[0].items() if not torch.equal(value, states[1][name]))
    features = cached_features(backbone, train.images, "Features")[:COMPARED_IMAGES].float()
    maps = [_predicted(segmenter, features) for segmenter in (first, second)]
    pixels = float((maps[0] != maps[1]).float().mean())
    return Audit(names, changed, pixels, _digest(first) == _digest(second), len(train))


def _predicted(segmenter: Segmenter, features: Tensor) -> Tensor:
    maps = segmenter.segment_features(features.to(segmenter.codebook.device))
    return segmenter.similarities(maps, (segmenter.size, segmenter.size)).argmax(1)


def _digest(segmenter: Segmenter) -> str:
    """Return the hash of the checkpoint's bytes, the diagnostic's weights set to zero."""
    for value in segmenter.linear_probe.parameters():
        value.data.zero_()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(segmenter, Path(folder))
        return hashlib.sha256((Path(folder) / "segmenter.safetensors").read_bytes()).hexdigest()


class LabelledLosses(TorchFunctionMode):
    """While active, hand every cross-entropy that is computed, the form of all labelled losses, to an observer."""

    def __init__(self, observe: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.observe = observe

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        """Call the function, and show its result to the observer if it is a cross-entropy."""
        result = func(*args, **(kwargs or {}))
        if func is F.cross_entropy:
            self.observe(result)
        return result


@contextmanager
def labelled_leaves() -> Iterator[dict[int, Tensor]]:
    """Yield the parameters, by id, where the graph of any labelled loss that is computed within the block ends.

    The graphs are those that training itself builds and walks backwards.
    """
    reached: dict[int, Tensor] = {}
    with LabelledLosses(lambda loss: reached.update((id(leaf), leaf) for leaf in leaves(loss))):
        yield reached


def leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield every parameter that the loss's autograd graph ends in."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
