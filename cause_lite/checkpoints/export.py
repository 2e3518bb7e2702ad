"""Write a fitted segmenter as a model folder for others: weights, card, and a small backbone where one is ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from cause_lite.backbones.loading import bundled_dir, find_folder, labels_seen, licence_of, weights_in
from cause_lite.checkpoints.matching import MATCHING_FILE, read_matching
from cause_lite.checkpoints.segmenter_folder import (
    FIT_FILE,
    SHAPE_FILE,
    WEIGHTS_FILE,
    load,
    read_config,
    read_shape,
    write_shape,
)
from cause_lite.config import BackboneConfig, FitConfig
from cause_lite.runtime.files import UserError, read_json, write_whole

TEMPLATE = Path(__file__).with_name("card.md")
CLEAN = "No label had any influence on what it predicts."
SEEN = "No label had any influence on its fit. **Its backbone was trained on {labels}.**"
LEAKED = "**Labels trained its head** (label flow as in the release): its predictions are not unsupervised."


def export(run: Path, out: Path, licence: str = "mit") -> Path:
    """Write a model folder with weights, card, and a small backbone where one is ours; return its path.

    Parameters
    ----------
    run
        A folder that `cause-lite fit` wrote.
    out
        The model folder; it must not exist.
    licence
        An identifier that the Hugging Face Hub knows.

    Raises
    ------
    UserError
        When `run` is no finished fit or `out` exists.
    """
    run, out = Path(run), Path(out)
    load(run, with_backbone=False)  # what cannot be loaded is not exported
    fit, shape = read_json(run / FIT_FILE), read_json(run / SHAPE_FILE)
    if out.exists():
        raise UserError(f"{out}: exists; name a folder that does not")

    def write(part: Path) -> None:
        part.mkdir()
        shutil.copy(run / WEIGHTS_FILE, part)
        if (run / MATCHING_FILE).exists():
            shutil.copy(run / MATCHING_FILE, part)
        exported = shape | _copy_backbone(read_shape(run / SHAPE_FILE).backbone, part)
        write_shape(part, exported)
        (part / "README.md").write_text(card(fit, exported, run, licence), encoding="utf-8")

    write_whole(out, write)
    return out


def _copy_backbone(choice: BackboneConfig | None, part: Path) -> dict[str, object]:
    """Copy a backbone that was trained here beside the segmenter; return its new entry of segmenter.json.

    A backbone that ships or is timm's stays a name: nothing is copied, and {} is returned.
    """
    folder = find_folder(choice.name, stored=True) if choice else None
    weights = weights_in(folder) if folder else None
    if choice is None or weights is None or weights.is_relative_to(bundled_dir()):
        return {}
    (part / "backbone").mkdir()
    for file in (weights, weights.with_suffix(".json")):
        shutil.copy(file, part / "backbone")
    return {"backbone": choice.model_copy(update={"name": "./backbone"}).model_dump(mode="json")}


def card(fit: dict, shape: dict, run: Path, licence: str) -> str:
    """Return the model card of a fit from its fit.json, its segmenter.json, and the scores and matching of its run."""
    config = read_config(run)
    settings = {key: value for key, value in config.backbone if value != BackboneConfig.model_fields[key].default}
    backbone = settings.pop("name")
    backbone = Path(backbone).name if find_folder(backbone, stored=True) else backbone  # no path of this machine
    data = Path(config.data.name).name
    content = ModelCard.from_template(
        ModelCardData(library_name="cause-lite", tags=["image-segmentation", "unsupervised"], license=licence),
        template_path=str(TEMPLATE),
        title=f"CAUSE-{config.head.kind.upper()} on {data}",
        labels=_labels(config),
        head=config.head.kind,
        backbone=", ".join([backbone, *(f"{key} {value}" for key, value in settings.items())]),
        backbone_licence=licence_of(config.backbone.name) or "not recorded; see where the backbone comes from",
        data=data,
        seed=config.seed,
        fit=fit,
        shape=shape,
        scores=_scores(run),
        matching=read_matching(run, shape["num_classes"]),
    )
    return str(content).rstrip() + "\n"


def _labels(config: FitConfig) -> str:
    """Say what labels had a part in a fit, and in its backbone."""
    if config.probe.label_flow == "as_released" or config.head.clip_with_labels:
        return LEAKED
    labels = labels_seen(config.backbone.name) if config.backbone.untrained is None else None
    return SEEN.format(labels=labels) if labels else CLEAN


def _scores(run: Path) -> list[tuple[str, str, str, str]]:
    """Return the rows of a card's table of scores, those of a run on its own data and on others."""
    rows = []
    for path in sorted(run.glob("scores*.json")):
        record = read_json(path)
        try:
            about = f"{Path(record['data']).name}, {record['images']} images, {record['view']}"
            rows += [(about, name, f"{s['miou']:.1f}", f"{s['pacc']:.1f}") for name, s in record["scores"].items()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: is no record of an evaluation ({error!r}); evaluate again") from error
    return rows
