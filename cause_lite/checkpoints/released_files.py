"""The published implementation's checkpoint files: read as a segmenter, and written from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cause_lite.checkpoints.segmenter_folder import SegmenterShape, empty_segmenter
from cause_lite.head import TRHead
from cause_lite.runtime.files import UserError, read_torch
from cause_lite.segmenter import Segmenter

# The released names of one head's modules -> ours. Convolutions of size 1x1 become linear layers.
_NAMES = {
    "query_pos": "query_position",
    "f1": "reduce.linear",
    "f2.0": "reduce.nonlinear.0",
    "f2.2": "reduce.nonlinear.2",
    "self_attn": "decoder.self_attention",
    "multihead_attn": "decoder.cross_attention",
    "linear1": "decoder.expand",
    "linear2": "decoder.contract",
    "norm1": "decoder.norm1",
    "norm2": "decoder.norm2",
    "norm3": "decoder.norm3",
}


def load_released(segment: Path, cluster: Path, modular: Path, student: bool = False) -> Segmenter:
    """Return a segmenter with the same outputs as the published implementation's files, without a backbone.

    Nothing is unpickled.

    Parameters
    ----------
    segment
        segment_mlp.pth or segment_tr.pth, a state dict with both heads and the linear probe.
    cluster
        The state dict that holds `cluster_probe` (classes, R).
    modular
        modular.npy, the codebook (K, D).
    student
        Take the student's head; by default the teacher's predicts, as in the release.

    Raises
    ------
    UserError
        Naming the file, and the tensor that does not fit.
    """
    codebook, released = _read_codebook(modular), _read_tensors(segment)
    centres = _read_tensors(cluster).get("cluster_probe")
    if centres is None or centres.ndim != 2 or codebook.ndim != 2:
        raise UserError(f"{cluster}, {modular}: expected a `cluster_probe` (classes, R) and a codebook (K, D)")
    prefix = "head" if student else "head_ema"
    positions = released.get(f"{prefix}.query_pos")
    segmenter = empty_segmenter(
        SegmenterShape(
            head="mlp" if positions is None else "tr",
            dim=codebook.shape[1],
            reduced_dim=centres.shape[1],
            num_patches=1 if positions is None else len(positions),
            num_concepts=len(codebook),
            num_classes=len(centres),
            size=322 if positions is not None and len(positions) == 23**2 else 320,  # 23 patches of 14 pixels
            classes=[],
            backbone=None,
        )
    )
    segmenter.get_buffer("codebook").copy_(codebook)
    segmenter.cluster_probe.centres.data.copy_(centres)
    _load_head(segmenter, released, prefix, segment)
    _load_linear_probe(segmenter, released, segment)
    return segmenter.eval()


def _read_codebook(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except Exception as error:  # on damaged bytes numpy raises nearly any kind
        raise UserError(f"{path}: is not a NumPy array of numbers ({type(error).__name__})") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    content = read_torch(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: expected named tensors and nothing else")
    return content


def _load_head(segmenter: Segmenter, released: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load one released head. Raises UserError naming the tensor that is absent, unknown or of another shape."""
    expected = segmenter.head.state_dict()
    found = head_state(released, prefix)
    if isinstance(segmenter.head, TRHead):
        found["codebook"] = segmenter.get_buffer("codebook")
    for name in sorted(expected.keys() | found.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path}: {prefix}/{name} is {shapes[0]} where {shapes[1]} is expected")
    segmenter.head.load_state_dict(found)


def head_state(released: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return one released head's tensors under our names; "head" is the student's, "head_ema" the teacher's."""
    inside = {
        name.removeprefix(f"{prefix}."): value for name, value in released.items() if name.startswith(f"{prefix}.")
    }
    return {_renamed(name.removeprefix("tr."), _NAMES): _as_linear(value) for name, value in inside.items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    """Return a tensor's name with that of its module replaced."""
    old = next((old for old in names if name == old or name.startswith(f"{old}.")), "")
    return names.get(old, "") + name.removeprefix(old)


def _load_linear_probe(segmenter: Segmenter, released: dict[str, Tensor], path: Path) -> None:
    """Load the released linear probe. Raises UserError when it does not fit the head and the clusters."""
    expected = segmenter.linear_probe.classify.state_dict()
    found = {name: _as_linear(released[f"linear.f.{name}"]) for name in expected if f"linear.f.{name}" in released}
    if any(name not in found or found[name].shape != expected[name].shape for name in expected):
        num_classes, reduced_dim = expected["weight"].shape
        raise UserError(f"{path}: linear.f does not map {reduced_dim} channels to {num_classes} classes")
    segmenter.linear_probe.classify.load_state_dict(found)


def _as_linear(value: Tensor) -> Tensor:
    """Return a 1x1 convolution's weight as a linear layer's; other tensors as they are."""
    return value.flatten(1) if value.ndim == 4 else value


def _as_convolution(value: Tensor) -> Tensor:
    """Return a linear layer's weight as a 1x1 convolution's; a bias as it is."""
    return value[..., None, None] if value.ndim == 2 else value


def released_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """Return what `segment_{mlp,tr}.pth` would hold of a segmenter: its linear probe, and its head as both heads."""
    probe = segmenter.linear_probe.classify.state_dict()
    content = {f"linear.f.{name}": _as_convolution(value) for name, value in probe.items()}
    theirs = {ours: name for name, ours in _NAMES.items()}
    for name, value in segmenter.head.state_dict().items():
        if name == "codebook":
            continue
        inside = "tr." if isinstance(segmenter.head, TRHead) and name != "query_position" else ""
        tensor = _as_convolution(value) if name.startswith("reduce.") else value
        content |= {f"{head}.{inside}{_renamed(name, theirs)}": tensor.clone() for head in ("head", "head_ema")}
    return content
