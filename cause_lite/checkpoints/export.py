"""Write a fitted segmenter as a model folder for others: weights, card, and a small backbone where one is ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from cause_lite.backbones.loading import bundled_dir, pretrained_dir
from cause_lite.checkpoints.config_records import read_config
from cause_lite.checkpoints.segmenter_folder import SHAPE_FILE, WEIGHTS_FILE, load, write_shape
from cause_lite.runtime.files import UserError, read_json, write_whole

CARD = """---
library_name: cause-lite
tags: [image-segmentation, unsupervised]
license: {licence}
---

# {title}

A segmenter fitted by CAUSE (causal unsupervised semantic segmentation, arXiv 2310.07379) with cause-lite.
{labels}

```python
import cause_lite

segmenter = cause_lite.load("hf:OWNER/NAME")  # or the folder that holds this file
labels = segmenter.segment(image)  # (H, W, 3) uint8 -> (H, W) cluster numbers
```

| | |
|---|---|
| head | {head} |
| backbone | {backbone} |
| trained on | {data}, seed {seed} |
| clusters | {num_classes} |
| concepts | {num_concepts} |
| image side | {size} px |
| commit | {commit} |
| configuration hash | {config_hash} |
| date | {date} |
{scores}"""
CLEAN = "No label had any influence on what it predicts; clusters have numbers, not names."
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
        exported = shape | _copy_backbone(shape["backbone"], part)
        write_shape(part, exported)
        (part / "README.md").write_text(card(fit_record, exported, run, licence), encoding="utf-8")

    write_whole(out, write)
    return out


def _copy_backbone(name: str | None, part: Path) -> dict[str, str]:
    """Copy a backbone that was trained here beside the segmenter; return its new entry of segmenter.json.

    A backbone that ships or is timm's stays a name: nothing is copied, and {} is returned.
    """
    ships = (bundled_dir() / str(name) / "vit.safetensors").exists()
    folder = next((f for f in (pretrained_dir(str(name)), Path(str(name))) if (f / "vit.safetensors").exists()), None)
    if ships or folder is None:
        return {}
    (part / "backbone").mkdir()
    for file in ("vit.json", "vit.safetensors"):
        shutil.copy(folder / file, part / "backbone")
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
        The run's folder, whose scores.json is read where there is one.
    licence
        An identifier that the Hugging Face Hub knows.
    """
    config = read_config(fit_record["config"])
    data = Path(config.data.name).name
    return CARD.format(
        licence=licence,
        title=f"CAUSE-{config.head.kind.upper()} on {data}",
        labels=LEAKED if config.probe.label_flow == "as_released" or config.head.clip_with_labels else CLEAN,
        head=config.head.kind,
        data=data,
        seed=config.seed,
        scores=_score_table(run / "scores.json"),
        **{key: shape[key] for key in ("num_classes", "num_concepts", "size", "backbone")},
        **{key: fit_record[key] for key in ("commit", "config_hash", "date")},
    )


def _score_table(path: Path) -> str:
    """Return the scores of a run as a Markdown table; nothing when there are none."""
    if not path.exists():
        return ""
    scores = read_json(path)["scores"]
    rows = "\n".join(f"| {name} | {score['miou']} | {score['pacc']} |" for name, score in scores.items())
    return f"\n| scores | mIoU, % | pixel accuracy, % |\n|---|---|---|\n{rows}\n"
