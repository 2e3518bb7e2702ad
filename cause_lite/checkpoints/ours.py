"""Fitted segmenters on disk: ours (safetensors and JSON) and the published implementation's."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cause_lite.backbones.backbone import load_backbone
from cause_lite.config import HEADS
from cause_lite.head import TRHead, build_head
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.runtime.files import UserError, project_dir, read_json, write_json, write_whole
from cause_lite.segmenter import Segmenter

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
    write_shape(Path(folder), shape_of(segmenter) | {"backbone": backbone, "notes": notes or {}})


def shape_of(segmenter: Segmenter) -> dict:
    """Return what `empty_segmenter` needs to build a segmenter of the same shape."""
    num_classes, reduced_dim = segmenter.cluster_probe.centres.shape
    positions = len(segmenter.head.query_position) if isinstance(segmenter.head, TRHead) else None
    return {
        "head": "mlp" if positions is None else "tr",
        "dim": segmenter.codebook.shape[1],
        "reduced_dim": reduced_dim,
        "num_patches": positions or 1,
        "num_concepts": len(segmenter.codebook),
        "num_classes": num_classes,
        "size": segmenter.size,
        "classes": list(segmenter.classes),
    }


def write_shape(folder: Path, shape: dict) -> None:
    """The file that says what a segmenter is; a folder that has it is whole."""
    write_json(folder / "segmenter.json", shape)


def load(name: str | Path, with_backbone: bool = True) -> Segmenter:
    """A segmenter that ships (`scenes`), a folder that `save` or `cause-lite export` wrote, or one on the Hugging Face
    Hub (`hf:OWNER/NAME`), ready to `.segment(image)`.

    Raises UserError when nothing is found there, or what is found is damaged.
    """
    if str(name).startswith("hf:"):
        from cause_lite.checkpoints import hub

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
    if shape["head"] not in HEADS:
        raise UserError(f"{path}: `head` is {shape['head']!r}; {' or '.join(HEADS)} is possible")
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
