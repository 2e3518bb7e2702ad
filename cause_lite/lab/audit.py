"""What labels touch: train twice, with true and with permuted labels, compare everything, and walk the loss's graph."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cause_lite import checkpoints
from cause_lite.backbones.backbone import Backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.lab import as_released
from cause_lite.lab.label_flow import fit
from cause_lite.lab.studies import permuted_images
from cause_lite.probe import LinearProbe, labelled_loss, patch_labels
from cause_lite.runtime.files import UserError
from cause_lite.segmenter import Segmenter


@dataclass(frozen=True)
class Audit:
    """What two fits that differ in their labels alone have in common, and what the labelled loss reaches.

    `reached`: parameters that get a gradient from the labelled loss. `changed`: tensors of the segmenter that
    differ. `pixels`: share of the predicted pixels that differ, 0..1. `same_file`: whether what predicts is
    byte for byte the same file (the linear probe, a diagnostic, left out).
    """

    reached: tuple[str, ...]
    changed: tuple[str, ...]
    pixels: float
    same_file: bool

    @property
    def clean(self) -> bool:
        """Whether labels have no way to any prediction."""
        ways = [name for name in (*self.reached, *self.changed) if not name.startswith("linear_probe.")]
        return not ways and self.pixels == 0 and self.same_file


def audit(config: FitConfig, train: Split, backbone: Backbone) -> Audit:
    """Fit twice from one seed, with true and with permuted labels. Raises UserError when there are no labels."""
    if train.labels is None:
        raise UserError(f"{train.name}: has no labels, so there is nothing that they could touch")
    labels = np.asarray(train.labels[:])
    permuted = permuted_images(labels, np.random.default_rng(config.seed))
    if np.array_equal(labels, permuted):
        raise UserError(f"{train.name}: permuting the labels of {len(train)} images changes nothing; take more images")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=as_released.WARNING)  # this is where it is looked into
        fits = [fit(config, train.with_labels(some), backbone).segmenter for some in (labels, permuted)]
    states = [{k: v for k, v in f.state_dict().items() if not k.startswith("backbone.")} for f in fits]
    changed = tuple(name for name, value in states[0].items() if not torch.equal(value, states[1][name]))
    features = cached_features(backbone, train.images, "Features")
    maps = [_predicted(segmenter, features[:64].float()) for segmenter in fits]
    files = {_digest(segmenter) for segmenter in fits}
    pixels = float((maps[0] != maps[1]).float().mean())
    reached = reached_by_labels(config, fits[0], features[:2].float(), labels[:2])
    return Audit(tuple(reached), changed, pixels, len(files) == 1)


def _predicted(segmenter: Segmenter, features: Tensor) -> Tensor:
    return segmenter.similarities(segmenter.segment_features(features), (segmenter.size, segmenter.size)).argmax(1)


def _digest(segmenter: Segmenter) -> str:
    """The hash of the checkpoint's bytes, the diagnostic's weights set to zero."""
    for value in segmenter.linear_probe.parameters():
        value.data.zero_()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(segmenter, Path(folder))
        return hashlib.sha256((Path(folder) / "segmenter.safetensors").read_bytes()).hexdigest()


def reached_by_labels(config: FitConfig, segmenter: Segmenter, features: Tensor, labels: np.ndarray) -> Iterator[str]:
    """The names of the parameters that the labelled loss of the configuration's step 3 sends a gradient to.

    The loss is built from features (B, P, D) as training builds it, and its autograd graph is walked.
    """
    head, linear = segmenter.head.requires_grad_(True), segmenter.linear_probe
    loss = labelled_loss_of(config, head, linear, features, labels)
    met = {id(leaf) for leaf in leaves(loss)}
    parts = nn.ModuleDict({"head": head, "linear_probe": linear, "cluster_probe": segmenter.cluster_probe})
    yield from (name for name, value in parts.named_parameters() if id(value) in met)
    head.requires_grad_(False)


def labelled_loss_of(
    config: FitConfig, head: nn.Module, linear: LinearProbe, features: Tensor, labels: np.ndarray
) -> Tensor:
    """The one term of step 3 that sees labels."""
    segments = head(features)
    if config.probe.label_flow == "as_released":
        return as_released.supervised_loss(linear, segments, torch.from_numpy(labels))
    target = patch_labels(labels, round(segments.shape[1] ** 0.5))
    return labelled_loss(linear(segments).flatten(0, 1), target.flatten())


def leaves(loss: Tensor) -> Iterator[Tensor]:
    """Every parameter that the loss's autograd graph ends in."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
