"""What the page that segments a reader's photograph loads: segmenters as ONNX, pictures to begin with, colours.

Begin with `write_segmenters`. The page is book/try.md with the scripts in book/_static/try.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from cause_lite import checkpoints
from cause_lite.backbones.loading import labels_seen
from cause_lite.checkpoints.onnx_export import CARD_FILE, NETWORK_FILE, write_onnx
from cause_lite.checkpoints.segmenter_folder import read_config
from cause_lite.datasets import scenes
from cause_lite.datasets.photos import photographs
from cause_lite.lab.colours import palette
from cause_lite.pages.assets import RUNTIME_FILE
from cause_lite.runtime.files import project_dir, read_json, write_json

SCENES = (0, 3, 5)  # validation scenes to begin with
PHOTOGRAPH_SIDE = 1024  # pixels of the longer side of a photograph to begin with
SCALE = "viridis"  # of similarities


def write_segmenters(folder: Path) -> None:
    """Write every segmenter that ships, pictures to begin with, and an index of both, into `folder`/segmenters.

    The index lists photographs' segmenters before those of rendered scenes, since readers come with photographs.

    Parameters
    ----------
    folder
        The folder of the site's assets, which holds `onnxruntime` already.
    """
    target, data = folder / "segmenters", project_dir() / "data"
    names = sorted((path.name for path in (data / "segmenters").iterdir()), key=lambda name: (name == "scenes", name))
    content = {
        "models": [_write_segmenter(name, target) for name in names],
        "samples": [*_photographs(target), *_rendered_scenes(target)],
        "scale": _bytes(matplotlib.colormaps[SCALE](np.linspace(0, 1, 64))),
        "runtimeBytes": (folder / "onnxruntime" / RUNTIME_FILE).stat().st_size,
    }
    write_json(target / "index.json", content)


def _bytes(colours: np.ndarray) -> list[list[int]]:
    return (255 * colours).round().astype(int).tolist()


def _write_segmenter(name: str, target: Path) -> dict:
    """Write one segmenter, and return its entry of the index."""
    write_onnx(checkpoints.load(name), target / name)
    card = read_json(target / name / CARD_FILE)
    config = read_config(project_dir() / "data" / "segmenters" / name)
    data = "rendered scenes, so that photographs are new to it" if name == "scenes" else Path(config.data.name).name
    labels = labels_seen(config.backbone.name)
    seen = f"The clusters were found without labels, on a backbone that was trained on {labels}."
    return card | {
        "name": name,
        "title": f"{name} ({card['clusters']} clusters)",
        "note": f"The segmenter {name} was fitted on {data}, without labels; it sees tiles of {card['size']} pixels.",
        "labels": seen if labels else "No label was used.",
        "file": f"{name}/{NETWORK_FILE}",
        "bytes": (target / name / NETWORK_FILE).stat().st_size,
        "palette": palette(card["clusters"]).tolist(),
    }


def _photographs(target: Path) -> Iterator[dict]:
    """Write the photographs that ship, small enough for a page, and yield their entries of the index."""
    for path in photographs():
        image = Image.open(path).convert("RGB")
        image.thumbnail((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE))
        image.save(target / path.name, quality=90)
        yield {"file": path.name, "name": path.name, "alt": f"Photograph: {path.stem.replace('_', ' ')}"}


def _rendered_scenes(target: Path) -> Iterator[dict]:
    """Draw the scenes to begin with, and yield their entries of the index."""
    for number, index in enumerate(SCENES, 1):
        scene = scenes.render(0, "val", index)
        name = f"scene-{number}.png"
        Image.fromarray(scene.image).save(target / name)
        seen = [scenes.FINE_CLASSES[label] for label in np.unique(scene.labels)]
        yield {"file": name, "name": name, "alt": f"Rendered scene {number}: {', '.join(seen)}"}
