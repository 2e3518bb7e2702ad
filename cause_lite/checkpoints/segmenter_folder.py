"""A fitted segmenter as a folder: segmenter.safetensors holds its weights, segmenter.json says what it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cause_lite.backbones import Backbone, load_backbone
from cause_lite.backbones.centred import CentredBackbone
from cause_lite.backbones.loading import find_folder, folder_fingerprint, has_card
from cause_lite.checkpoints.matching import read_matching
from cause_lite.config import BackboneConfig, FitConfig
from cause_lite.datasets.arrays import Reading
from cause_lite.head import TRHead, build_head
from cause_lite.probe import ClusterProbe, LinearProbe
from cause_lite.runtime.files import UserError, is_path, project_dir, read_json, write_json, write_whole
from cause_lite.segmenter import Segmenter

SHAPE_FILE, WEIGHTS_FILE, FIT_FILE = "segmenter.json", "segmenter.safetensors", "fit.json"
CENTRE = "backbone_centre"  # the tensor that a centred backbone subtracts
Size = Annotated[int, Field(ge=1, le=100_000)]  # a larger one asks for memory that no segmenter needs


class SegmenterShape(BaseModel):
    """What is needed to build an empty segmenter, and where its backbone is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    head: Literal["tr", "mlp"]
    dim: Size  # D, channels of the backbone's features
    reduced_dim: Size  # R, channels of the head's output
    num_patches: Size  # P in training; 1 for the MLP head, which does not depend on it
    num_concepts: Size  # K, rows of the codebook
    num_classes: Size  # rows of the cluster probe
    size: Size  # pixels a side of the square that images are resized to
    classes: list[str]  # that it was fitted on; may be empty
    backbone: BackboneConfig | None  # its name may be a path below the folder, which begins with "./"; None: not known
    backbone_fingerprint: str | None = None  # in the fit, where it lies in a folder; see `folder_fingerprint`
    window: Annotated[tuple[float, float] | None, Field(strict=False)] = None  # see `datasets.arrays.Reading`
    bands: Annotated[tuple[int, ...] | None, Field(strict=False)] = None  # likewise


def save(
    segmenter: Segmenter, folder: Path, backbone: str | BackboneConfig | None = None, notes: dict | None = None
) -> None:
    """Write a segmenter; saving it twice gives the same bytes.

    segmenter.json is written last: a folder that has it is whole. The backbone's weights are not written; its centre
    is, so that the photographs which gave it are needed no more.

    Parameters
    ----------
    segmenter
        What to write.
    folder
        Where; it is made if absent.
    backbone
        The name, folder or settings that `load` takes the backbone from.
    notes
        Kept in segmenter.json as they are.
    """
    folder = Path(folder)
    weights = {k: v.contiguous() for k, v in segmenter.state_dict().items() if not k.startswith("backbone.")}
    if isinstance(segmenter.backbone, CentredBackbone):
        weights[CENTRE] = segmenter.backbone.centre.cpu().contiguous()
    (folder / SHAPE_FILE).unlink(missing_ok=True)
    write_whole(folder / WEIGHTS_FILE, lambda part: save_file(weights, part))
    told: dict[str, object] = {"backbone": None, "backbone_fingerprint": None, "notes": notes or {}}
    if backbone:
        choice = FitConfig().replace({"backbone": backbone}).backbone
        lies = find_folder(choice.name)
        if lies and not has_card(choice.name):  # from any working folder
            choice = choice.model_copy(update={"name": str(lies.absolute())})
        told |= {"backbone": choice.model_dump(mode="json"), "backbone_fingerprint": folder_fingerprint(lies)}
    write_shape(folder, shape_of(segmenter) | told)


def shape_of(segmenter: Segmenter) -> dict:
    """Return the fields of `SegmenterShape` that a segmenter itself decides: all but the backbone."""
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
        "window": segmenter.reading.window,
        "bands": segmenter.reading.bands,
    }


def write_shape(folder: Path, shape: dict) -> None:
    """Write segmenter.json, which says what a segmenter is and marks its folder as whole."""
    write_json(folder / SHAPE_FILE, shape)


def load(name: str | Path, with_backbone: bool = True) -> Segmenter:
    """Return a segmenter that is ready to `.segment(image)`.

    Parameters
    ----------
    name
        A segmenter that ships (`photos`, `scenes`), a folder that `save` or `cause-lite export` wrote, or one on the
        Hugging Face Hub (`hf:OWNER/NAME`). A folder of the name is taken before one that ships.
    with_backbone
        Load the backbone too, if segmenter.json names one.

    Raises
    ------
    UserError
        When nothing is found there, or what is found is damaged, or the backbone of that name is another one now.
    """
    if str(name).startswith("hf:"):
        from cause_lite.checkpoints import hub

        return load(hub.download(str(name).removeprefix("hf:")), with_backbone)
    folder = _find_folder(name)
    shape = read_shape(folder / SHAPE_FILE)
    segmenter, path = empty_segmenter(shape), folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
        centre = weights.pop(CENTRE, None)
        segmenter.to(weights["codebook"].dtype).load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: is not the file that {SHAPE_FILE} describes ({error})") from error
    if matching := read_matching(folder, shape.num_classes):
        segmenter.cluster_names = matching.names
    if with_backbone and shape.backbone:
        segmenter.backbone = _load_backbone(folder, shape.backbone, shape.backbone_fingerprint, centre)
        segmenter.backbone.prepare("fp64" if segmenter.codebook.dtype == torch.float64 else "fp32")
    return segmenter.eval()


def _load_backbone(folder: Path, choice: BackboneConfig, fingerprint: str | None, centre: Tensor | None) -> Backbone:
    """Return the backbone of a segmenter, which must be the one of the fit, centred as in the fit."""
    name = str(folder / choice.name) if choice.name.startswith("./") else choice.name
    lies = find_folder(name, stored=True)
    now = folder_fingerprint(lies)
    if now and fingerprint and now != fingerprint:
        raise UserError(
            f"{folder}: was fitted on other weights of the backbone {choice.name!r}, or by another card, "
            "than lie there now; put those back, or fit again"
        )
    choice = choice.model_copy(update={"name": str(lies.absolute()) if lies else name})
    if centre is None:
        return load_backbone(choice)
    plain = load_backbone(choice.plain)
    if centre.shape != (plain.dim,):
        raise UserError(f"{folder / WEIGHTS_FILE}: {CENTRE} has shape {tuple(centre.shape)}, not ({plain.dim},)")
    return CentredBackbone(plain, centre, choice.name)


def _find_folder(name: str | Path) -> Path:
    """Return the folder of that path; where there is none, that of the segmenter that ships under the name."""
    own, shipped = Path(name).expanduser(), project_dir() / "data" / "segmenters" / name
    found = [path for path in (own, shipped) if (path is own or not is_path(name)) and (path / SHAPE_FILE).exists()]
    if not found:
        raise UserError(
            f"{name}: no segmenter of that name ships and no folder there holds {SHAPE_FILE}; run `cause-lite fit`"
        )
    if len(found) > 1 and own.resolve() != shipped:
        warnings.warn(f"{name}: the folder of that name is taken, not the segmenter that ships", stacklevel=3)
    return found[0]


def read_shape(path: Path) -> SegmenterShape:
    """Read segmenter.json. Raises UserError naming the field that is absent, of another type, or out of range."""
    try:
        return SegmenterShape.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = f"`{first['loc'][0]}`" + "".join(f"[{place}]" for place in first["loc"][1:])
        if first["type"] == "missing":
            raise UserError(f"{path}: lacks {field}") from error
        raise UserError(f"{path}: {field} is {first['input']!r}; {first['msg']}") from error


def read_config(folder: Path) -> FitConfig:
    """Return the settings that a segmenter was fitted with, from its folder's fit.json.

    Raises
    ------
    UserError
        When the file does not hold any, or holds those of another version, naming the setting.
    """
    path = Path(folder) / FIT_FILE
    try:
        return FitConfig(**read_json(path)["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: `config` is absent or no table of settings ({error}); fit again") from error
    except UserError as error:
        if str(error).startswith(str(path)):  # the file could not be read
            raise
        raise UserError(f"{path}: `config` is not of this version ({error}); fit again") from error


def empty_segmenter(shape: SegmenterShape) -> Segmenter:
    """Return a segmenter of the given shape without backbone, its weights still to be loaded."""
    codebook = torch.zeros(shape.num_concepts, shape.dim)
    segmenter = Segmenter(
        build_head(shape.head, shape.dim, shape.reduced_dim, shape.num_patches, codebook),
        codebook,
        ClusterProbe(shape.num_classes, shape.reduced_dim),
        LinearProbe(len(shape.classes) or shape.num_classes, shape.reduced_dim),
        size=shape.size,
        classes=tuple(shape.classes),
    )
    segmenter.reading = Reading(shape.window, shape.bands)
    return segmenter
