"""The published implementation's checkpoint files: read as a segmenter, and written from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cause_lite.checkpoints.ours import empty_segmenter
from cause_lite.head import TRHead
from cause_lite.runtime.files import UserError, read_torch
from cause_lite.segmenter import Segmenter

# The released names of one head's parameters -> ours. Convolutions of size 1x1 become linear layers.
_BRANCHES = {"f1": "reduce.linear", "f2.0": "reduce.nonlinear.0", "f2.2": "reduce.nonlinear.2"}
_DECODER = {
    "self_attn": "decoder.self_attention", "multihead_attn": "decoder.cross_attention", "linear1": "decoder.expand",
    "linear2": "decoder.contract", "norm1": "decoder.norm1", "norm2": "decoder.norm2", "norm3": "decoder.norm3",
}  # fmt: skip


def _read_tensors(path: Path) -> dict[str, Tensor]:
    content = read_torch(path)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: holds something else than named tensors")
    return content


def _ours(released: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One released head's tensors under our names."""
    renamed = {}
    for name, value in released.items():
        if not name.startswith(prefix + "."):
            continue
        inner = name.removeprefix(prefix + ".").removeprefix("tr.")
        if inner == "query_pos":
            renamed["query_position"] = value
            continue
        table = _BRANCHES | _DECODER
        source = next((s for s in table if inner.startswith(s + ".")), None)
        key = table[source] + inner.removeprefix(source) if source else inner
        renamed[key] = value.flatten(1) if value.ndim == 4 else value
    return renamed


def released_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """What `segment_{mlp,tr}.pth` would hold of this segmenter: its head as teacher and student, no projections."""
    table = {ours: theirs for theirs, ours in (_BRANCHES | _DECODER).items()}
    inside = "tr." if isinstance(segmenter.head, TRHead) else ""
    content = {
        f"linear.f.{part}": value for part, value in _convolved(segmenter.linear_probe.classify.state_dict()).items()
    }
    for name, value in segmenter.head.state_dict().items():
        source = next((ours for ours in table if name.startswith(f"{ours}.")), None)
        theirs = inside + table[source] + name.removeprefix(source) if source else "query_pos"
        if name != "codebook":
            kept = _convolved({"weight": value})["weight"] if name.startswith("reduce.") else value
            content |= {f"{part}.{theirs}": kept.clone() for part in ("head", "head_ema")}
    return content


def _convolved(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """A linear layer's tensors as those of a 1x1 convolution."""
    return {name: value[..., None, None] if value.ndim == 2 else value for name, value in layer.items()}


def load_released(segment: Path, cluster: Path, modular: Path, student: bool = False) -> Segmenter:
    """The published implementation's files -> a segmenter with the same outputs, without a backbone.

    `segment` (segment_mlp.pth or segment_tr.pth) and `cluster` are state dicts, `modular` a NumPy
    array (K, D). The teacher's head predicts, as in the release; `student` takes the other one.
    Nothing is unpickled. Raises UserError naming the file and the tensor that does not fit.
    """
    try:
        codebook = torch.from_numpy(np.load(modular, allow_pickle=False)).float()
    except Exception as error:  # on damaged bytes numpy raises nearly any kind
        raise UserError(f"{modular}: is not a NumPy array of numbers ({type(error).__name__})") from error
    released, clusters = _read_tensors(segment), _read_tensors(cluster)
    if codebook.ndim != 2 or clusters.get("cluster_probe", codebook).ndim != 2 or "cluster_probe" not in clusters:
        raise UserError(f"{cluster}, {modular}: a `cluster_probe` (classes, R) and a codebook (K, D) are expected")
    prefix = "head" if student else "head_ema"
    kind = "tr" if f"{prefix}.query_pos" in released else "mlp"
    num_classes, reduced_dim = clusters["cluster_probe"].shape
    patches = len(released[f"{prefix}.query_pos"]) if kind == "tr" else 1
    segmenter = empty_segmenter(
        kind, codebook.shape[1], reduced_dim, patches, len(codebook), num_classes, 322 if patches == 529 else 320, []
    )
    wanted = segmenter.head.state_dict()
    given = _ours(released, prefix) | ({"codebook": codebook} if kind == "tr" else {})
    for name in sorted(wanted.keys() | given.keys()):
        if name not in wanted or name not in given or wanted[name].shape != given[name].shape:
            shapes = [tuple(side[name].shape) if name in side else "absent" for side in (given, wanted)]
            raise UserError(f"{segment}: {prefix}/{name} is {shapes[0]} where {shapes[1]} is expected")
    segmenter.head.load_state_dict(given)
    segmenter.codebook.copy_(codebook)
    segmenter.cluster_probe.centres.data.copy_(clusters["cluster_probe"])
    linear = {"classify.weight": released.get("linear.f.weight"), "classify.bias": released.get("linear.f.bias")}
    if any(v is None for v in linear.values()) or linear["classify.weight"].shape[:2] != (num_classes, reduced_dim):
        raise UserError(f"{segment}: linear.f does not map {reduced_dim} channels to {num_classes} classes")
    segmenter.linear_probe.load_state_dict({k: v.flatten(1) if v.ndim == 4 else v for k, v in linear.items()})
    return segmenter.eval()
