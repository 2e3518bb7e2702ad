"""A fitted segmenter as a model folder for others: weights, card, and a small backbone where one is ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from cause_lite.backbones.backbone import bundled_dir, pretrained_dir
from cause_lite.checkpoints.config_records import read_config
from cause_lite.checkpoints.ours import load, write_shape
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
    """A folder that `fit` wrote -> a model folder `out` with weights, card, and a small backbone where one is ours.

    Raises UserError when `run` is no finished fit or `out` exists.
    """
    run, out = Path(run), Path(out)
    load(run, with_backbone=False)  # what cannot be loaded is not exported
    about, shape = read_json(run / "fit.json"), read_json(run / "segmenter.json")
    if out.exists():
        raise UserError(f"{out}: exists; name a folder that does not")

    def write(part: Path) -> None:
        part.mkdir()
        shutil.copy(run / "segmenter.safetensors", part)
        exported = shape | _with_backbone(shape["backbone"], part)
        write_shape(part, exported)
        (part / "README.md").write_text(card(about, exported, run, licence), encoding="utf-8")

    write_whole(out, write)
    return out


def _with_backbone(name: str | None, part: Path) -> dict[str, str]:
    """Copy a backbone that this project trained beside the segmenter; one that ships or is timm's stays a name."""
    ships = (bundled_dir() / str(name) / "vit.safetensors").exists()
    folder = next((f for f in (pretrained_dir(str(name)), Path(str(name))) if (f / "vit.safetensors").exists()), None)
    if ships or folder is None:
        return {}
    (part / "backbone").mkdir()
    for file in ("vit.json", "vit.safetensors"):
        shutil.copy(folder / file, part / "backbone")
    return {"backbone": "./backbone"}


def card(about: dict, shape: dict, run: Path, licence: str) -> str:
    """The model card of a fit, from its records alone."""
    config, scores = read_config(about["config"]), ""
    if (run / "scores.json").exists():
        lines = [
            f"| {name} | {s['miou']} | {s['pacc']} |" for name, s in read_json(run / "scores.json")["scores"].items()
        ]
        scores = "\n| scores | mIoU, % | pixel accuracy, % |\n|---|---|---|\n" + "\n".join(lines) + "\n"
    labels = LEAKED if config.probe.label_flow == "as_released" else CLEAN
    title = f"CAUSE-{config.head.kind.upper()} on {Path(config.data.name).name}"
    fields = {key: shape[key] for key in ("num_classes", "num_concepts", "size", "backbone")}
    told = {key: about[key] for key in ("commit", "config_hash", "date")}
    return CARD.format(
        licence=licence, title=title, labels=labels, head=config.head.kind, data=Path(config.data.name).name,
        seed=config.seed, scores=scores, **fields, **told,
    )  # fmt: skip
