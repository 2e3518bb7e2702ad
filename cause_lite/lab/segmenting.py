"""Segment image files with a fitted model. Nothing that only training, scoring or drawing needs is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite import checkpoints
from cause_lite.datasets.images import read_rgb
from cause_lite.lab.colours import colourise
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import write_whole
from cause_lite.runtime.progress import track


def segment_files(paths: list[Path], model: str, out: Path, device: str = "auto") -> Iterator[Path]:
    """Segment images, and write a label map and an overlay of each.

    Parameters
    ----------
    paths
        Image files.
    model
        The name of a segmenter that ships, or a folder that `runs.fit_to` wrote.
    out
        The folder for NAME.labels.png (cluster numbers) and NAME.overlay.png (colours on the image). NAME is the
        file's name without its ending, or with it where two of the files differ only in that.
    device
        `auto`, `cpu`, `cuda` or `mps`.

    Yields
    ------
    Path
        Each file once it is whole on disk.

    Raises
    ------
    UserError
        When the model or an image cannot be read, or a file cannot be written.
    """
    segmenter = checkpoints.load(model).to(choose_device(device))
    stems = [path.stem for path in paths]
    for path in track(paths, "Segmenting"):
        image = np.array(read_rgb(path))
        labels = segmenter.segment(image)
        name = path.name if stems.count(path.stem) > 1 else path.stem
        yield _written(Image.fromarray(labels), Path(out) / f"{name}.labels.png")
        yield _written(Image.fromarray(colourise(labels, image)), Path(out) / f"{name}.overlay.png")


def _written(picture: Image.Image, path: Path) -> Path:
    write_whole(path, lambda part: picture.save(part, format="PNG"))
    return path
