"""Fitted segmenters on disk: ours (safetensors and JSON) and the published implementation's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cause_lite.backbone import load_backbone
from cause_lite.config import CHOICES
from cause_lite.files import UserError, project_dir, read_json, read_torch, write_json, write_whole
from cause_lite.head import TRHead
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.segmenter import Segmenter, build_head

SHAPE_FIELDS = {
    "head": str, "dim": int, "reduced_dim": int, "num_patches": int, "num_concepts": int, "num_classes": int,
    "size": int, "classes": list, "backbone": str | None,
}  # fmt: skip
LARGEST = 100_000  # of any size in segmenter.json; what is beyond asks for memory that no segmenter needs


def save(segmenter: Segmenter, folder: Path, backbone: str | None = None, notes: dict | None = None) -> None:
    """Write `segmenter.safetensors`, then `segmenter.json`, which marks the folder as whole.

    The backbone's weights are not written; `backbone` names it for `load`. Writing twice gives the same bytes.
    """
    weights = {k: v.contiguous() for k, v in segmenter.state_dict().items() if not k.startswith("backbone.")}
    (Path(folder) / "segmenter.json").unlink(missing_ok=True)
    write_whole(Path(folder) / "segmenter.safetensors", lambda part: save_file(weights, part))
    write_shape(Path(folder), segmenter.shape() | {"backbone": backbone, "notes": notes or {}})


def write_shape(folder: Path, shape: dict) -> None:
    """The file that says what a segmenter is; a folder that has it is whole."""
    write_json(folder / "segmenter.json", shape)


def load(name: str | Path, with_backbone: bool = True) -> Segmenter:
    """A segmenter that ships (`scenes`), a folder that `save` or `cause-lite export` wrote, or one on the Hugging Face
    Hub (`hf:OWNER/NAME`), ready to `.segment(image)`.

    Raises UserError when nothing is found there, or what is found is damaged.
    """
    if str(name).startswith("hf:"):
        from cause_lite import hub

        return load(hub.fetched(str(name).removeprefix("hf:")), with_backbone)
    folder = next(
        (f for f in (project_dir() / "data" / "segmenters" / str(name), Path(name)) if (f / "segmenter.json").exists()),
        None,
    )
    if folder is None:
        raise UserError(
            f"{name}: no segmenter of that name ships and no folder there holds segmenter.json; run `cause-lite fit`"
        )
    shape = read_json(folder / "segmenter.json")
    check_shape(shape, folder / "segmenter.json")
    segmenter = empty_segmenter(**{k: shape[k] for k in SHAPE_FIELDS.keys() - {"backbone"}})
    path = folder / "segmenter.safetensors"
    try:
        segmenter.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: is not the file that segmenter.json describes ({error})") from error
    if with_backbone and shape["backbone"]:
        beside = shape["backbone"].startswith("./")
        segmenter.backbone = load_backbone(str(folder / shape["backbone"]) if beside else shape["backbone"])
    return segmenter.eval()


def check_shape(shape: dict, path: Path) -> None:
    """Raises UserError naming the field of segmenter.json that is absent, of another type, or out of bounds."""
    for field, kind in SHAPE_FIELDS.items():
        if field not in shape:
            raise UserError(f"{path}: lacks `{field}`")
        value = shape[field]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{path}: `{field}` is {value!r}, a {type(value).__name__}")
        if isinstance(value, int) and not 1 <= value <= LARGEST:
            raise UserError(f"{path}: `{field}` is {value}; 1 to {LARGEST} is possible")
    if shape["head"] not in CHOICES["head"]:
        raise UserError(f"{path}: `head` is {shape['head']!r}; {' or '.join(CHOICES['head'])} is possible")
    if not all(isinstance(name, str) for name in shape["classes"]):
        raise UserError(f"{path}: `classes` holds something else than names")


def empty_segmenter(
    head: str,
    dim: int,
    reduced_dim: int,
    num_patches: int,
    num_concepts: int,
    num_classes: int,
    size: int,
    classes: list[str],
) -> Segmenter:
    """A segmenter of the given shape, its weights still to be loaded."""
    codebook = torch.zeros(num_concepts, dim)
    return Segmenter(
        build_head(head, dim, reduced_dim, num_patches, codebook), codebook,
        ClusterProbe(num_classes, reduced_dim), LinearProbe(num_classes, reduced_dim), None, size, tuple(classes),
    )  # fmt: skip


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
