"""Images and labels by name: `scenes` and `scenes-coarse` (rendered), `camvid` (on disk)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite import camvid, scenes
from cause_lite.files import UserError, cache_dir, write_whole
from cause_lite.probe import IGNORED
from cause_lite.progress import track

SPLITS = {"scenes": tuple(scenes.SPLITS), "scenes-coarse": tuple(scenes.SPLITS), "camvid": tuple(camvid.SPLITS)}


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, 3) uint8 and labels (N, H, W) int16 with -1 = ignored, or labels None."""

    name: str
    split: str
    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def with_labels(self, labels: np.ndarray | None) -> Split:
        """The same images with other labels, or with none."""
        return replace(self, labels=labels)


def load_split(name: str, split: str, size: int | None = None) -> Split:
    """A split of a data set, squared to `size` pixels (scenes: always 128; camvid: 320 when left out).

    Raises UserError for an unknown name or split, or data that is not there.
    """
    if name not in SPLITS:
        raise UserError(f"no data set named {name!r}; choose from {', '.join(SPLITS)}")
    if split not in SPLITS[name]:
        raise UserError(f"{name}: no split {split!r}; choose from {', '.join(SPLITS[name])}")
    if name == "camvid":
        return _camvid(split, size or 320)
    fine = _scenes(split)
    if name == "scenes":
        return fine
    to_coarse = np.array(scenes.FINE_TO_COARSE, dtype=np.int16)
    return Split(name, split, scenes.COARSE_CLASSES, fine.images, to_coarse[fine.labels])


def _scenes(split: str) -> Split:
    """Rendered once; the arrays lie in the cache, memory-mapped."""
    source = Path(scenes.__file__).read_bytes() + np.__version__.encode()
    folder = cache_dir() / f"scenes-{split}-{hashlib.sha256(source).hexdigest()[:12]}"
    if not folder.exists():
        write_whole(folder, lambda part: _render(split, part))
    images, labels = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("images", "labels"))
    return Split("scenes", split, scenes.FINE_CLASSES, images, labels)


def _render(split: str, folder: Path) -> None:
    folder.mkdir()
    count, size = scenes.SPLITS[split], scenes.IMAGE_SIZE
    new = partial(np.lib.format.open_memmap, mode="w+")
    images = new(folder / "images.npy", dtype=np.uint8, shape=(count, size, size, 3))
    labels = new(folder / "labels.npy", dtype=np.int16, shape=(count, size, size))
    for number in track(range(count), f"Rendering scenes/{split}"):
        view = scenes.render(0, split, number)
        images[number], labels[number] = view.image, view.labels
    images.flush()
    labels.flush()


def squared(image: Image.Image, size: int, resample: int) -> np.ndarray:
    """Resize the shorter side to `size`, then cut the centre square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.resize((width, height), resample).crop((left, top, left + size, top + size)))


def _camvid(split: str, size: int) -> Split:
    root = camvid.folder()
    files = sorted((root / split).glob("*.png"))
    if not files:
        raise UserError(f"camvid: no frames in {root / split}; run `cause-lite data camvid` or set CAUSE_DATA")
    images, labels = [], []
    for file in files:
        annotation = root / f"{split}annot" / file.name
        try:
            with Image.open(file) as frame:
                images.append(squared(frame.convert("RGB"), size, Image.Resampling.BILINEAR))
            with Image.open(annotation) as classes:
                labels.append(squared(classes, size, Image.Resampling.NEAREST).astype(np.int16))
        except (OSError, SyntaxError) as error:
            raise UserError(f"camvid: {file} or {annotation} is missing or damaged ({error})") from error
    stacked = np.stack(labels)
    stacked[stacked >= len(camvid.CLASSES)] = IGNORED
    return Split("camvid", split, camvid.CLASSES, np.stack(images), stacked)


def prepare(name: str, say: Callable[[str], None]) -> None:
    """Make or download a data set."""
    if name not in SPLITS:
        raise UserError(f"no data set named {name!r}; choose from {', '.join(SPLITS)}")
    if name == "camvid":
        camvid.fetch(say)
    else:
        say("scenes: rendered on this machine, nothing is downloaded")


def class_shares(name: str) -> dict[str, tuple[int, np.ndarray]]:
    """For each labelled split: the number of images and each class's share of the labelled pixels."""
    shares = {}
    for split in (s for s in SPLITS[name] if s != "pretrain"):
        loaded = load_split(name, split)
        counts = np.bincount(loaded.labels[loaded.labels >= 0].astype(np.int64), minlength=len(loaded.classes))
        shares[split] = (len(loaded), counts / counts.sum())
    return shares
