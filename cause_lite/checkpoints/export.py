"""Write a fitted segmenter as a model folder for others: weights, card, and a small backbone where one is ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import timm

from cause_lite.backbones.loading import bundled_dir, folder_weights, labels_seen
from cause_lite.checkpoints.config_records import read_config
from cause_lite.checkpoints.matching import MATCHING_FILE, Matching, read_matching
from cause_lite.checkpoints.segmenter_folder import SHAPE_FILE, WEIGHTS_FILE, load, write_shape
from cause_lite.config import FitConfig
from cause_lite.runtime.files import UserError, read_json, write_whole

CARD = """---
library_name: cause-lite
tags: [image-segmentation, unsupervised]
license: {licence}
---

# {title}

A segmenter fitted by CAUSE (causal unsupervised semantic segmentation, arXiv 2310.07379) with cause-lite.
{labels}

## Use it

```bash
cause-lite segment photo.jpg --model FOLDER{named_option}  # the folder that holds this file, or hf:OWNER/NAME
```

```python
import cause_lite

segmenter = cause_lite.load("FOLDER")  # or "hf:OWNER/NAME"
labels = segmenter.segment("photo.jpg")  # or a Pillow image, an array, a tensor: (H, W) cluster numbers{names_line}
```

## What it is

| | |
|---|---|
| head | {head} |
| backbone | {backbone} |
| licence of these weights | {licence} |
| licence of the backbone's weights | {backbone_licence} |
| trained on | {data}{images}, seed {seed} |
| clusters | {num_classes} |
| concepts | {num_concepts} |
| image side | {size} px |
| commit | {commit} |
| configuration hash | {config_hash} |
| date | {date} |
{scores}{clusters}"""
NAMED_OPTION, NAMES_LINE = " --named", "\nnames = segmenter.cluster_names  # by cluster number"
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
    fit_record, shape = read_json(run / "fit.json"), read_json(run / SHAPE_FILE)
    if out.exists():
        raise UserError(f"{out}: exists; name a folder that does not")

    def write(part: Path) -> None:
        part.mkdir()
        shutil.copy(run / WEIGHTS_FILE, part)
        if (run / MATCHING_FILE).exists():
            shutil.copy(run / MATCHING_FILE, part)
        exported = shape | _copy_backbone(shape["backbone"], part)
        write_shape(part, exported)
        (part / "README.md").write_text(card(fit_record, exported, run, licence), encoding="utf-8")

    write_whole(out, write)
    return out


def _copy_backbone(name: str | None, part: Path) -> dict[str, str]:
    """Copy a backbone that was trained here beside the segmenter; return its new entry of segmenter.json.

    A backbone that ships or is timm's stays a name: nothing is copied, and {} is returned.
    """
    weights = folder_weights(str(name))
    if weights is None or weights.is_relative_to(bundled_dir()):
        return {}
    (part / "backbone").mkdir()
    for file in (weights, weights.with_suffix(".json")):
        shutil.copy(file, part / "backbone")
    return {"backbone": "./backbone"}


def card(fit_record: dict, shape: dict, run: Path, licence: str) -> str:
    """Return the model card of a fit, in Markdown, from its records alone.

    Parameters
    ----------
    fit_record
        fit.json of the run.
    shape
        segmenter.json of the model folder.
    run
        The run's folder, whose scores and matching are read where there are any.
    licence
        An identifier that the Hugging Face Hub knows.
    """
    config, matching = read_config(fit_record["config"]), read_matching(run, shape["num_classes"])
    data, images = Path(config.data.name).name, fit_record.get("images")
    return CARD.format(
        licence=licence,
        title=f"CAUSE-{config.head.kind.upper()} on {data}",
        labels=_labels(config),
        named_option=NAMED_OPTION if matching else "",
        names_line=NAMES_LINE if matching else "",
        backbone=config.backbone,
        backbone_licence=_backbone_licence(config.backbone),
        head=config.head.kind,
        data=data,
        images=f", {images} images" if images else "",
        seed=config.seed,
        scores=_score_table(run),
        clusters=_cluster_table(matching),
        **{key: shape[key] for key in ("num_classes", "num_concepts", "size")},
        **{key: fit_record[key] for key in ("commit", "config_hash", "date")},
    )


def _labels(config: FitConfig) -> str:
    """Say what labels had a part in a fit, and in its backbone."""
    if config.probe.label_flow == "as_released" or config.head.clip_with_labels:
        return LEAKED
    labels = labels_seen(config.backbone)
    return SEEN.format(labels=labels) if labels else CLEAN


def _backbone_licence(name: str) -> str:
    """Return the licence of a backbone's weights, as far as it is known."""
    if (bundled_dir() / name).is_dir():
        return "MIT (made by cause-lite)"
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name.partition("?")[0]) else None
    return (config and config.license) or "not recorded; see where the backbone comes from"


def _score_table(run: Path) -> str:
    """Return the scores of a run, on its own data and on others, as a Markdown table; nothing when there are none."""
    rows = []
    for path in sorted(run.glob("scores*.json")):
        record = read_json(path)
        try:
            about = f"{Path(record['data']).name}, {record['images']} images, {record['view']}"
            rows += [f"| {about} | {name} | {_pair(score)} |" for name, score in record["scores"].items()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: is no record of an evaluation ({error!r}); evaluate again") from error
    if not rows:
        return ""
    return "\n".join(
        ["\n## Scores\n", "| data | prediction | mIoU, % | pixel accuracy, % |", "|---|---|---|---|", *rows, ""]
    )


def _pair(score: dict) -> str:
    return " | ".join(f"{score[key]:.1f}" for key in ("miou", "pacc"))


def _cluster_table(matching: Matching | None) -> str:
    """Return how clusters and classes meet as a Markdown table; nothing when that is not known."""
    if matching is None:
        return ""
    made_on = f"Matched on {matching.images} labelled images of {matching.data}; it decides no label."
    rows = [
        f"| {each.cluster} | {each.one_to_one or '-'} | {each.most or '-'} | {100 * each.share:.0f} |"
        for each in matching.clusters
    ]
    return "\n".join(
        [
            "\n## Clusters\n",
            made_on,
            "",
            "| cluster | matched to | mostly | share of it, % |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
