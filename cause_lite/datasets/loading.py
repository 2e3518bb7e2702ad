"""Images and labels by name: `scenes` (rendered), `camvid`, the benchmarks' official files, or any folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.datasets import camvid, downloads, msrc, photos, scenes
from cause_lite.datasets.images import Lazy, crops_of, read_ids, read_rgb, readable
from cause_lite.datasets.official import OFFICIAL
from cause_lite.probe import IGNORED
from cause_lite.runtime.files import UserError, cache_dir, data_dir, write_whole
from cause_lite.runtime.progress import track

Pixels = np.ndarray | Lazy
SPLITS = {
    "scenes": tuple(scenes.SPLITS), "scenes-coarse": tuple(scenes.SPLITS), "camvid": tuple(camvid.SPLITS),
    **{name: tuple(official.splits) for name, official in OFFICIAL.items()},
}  # fmt: skip
IMAGE_ENDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, 3) uint8 and labels (N, H, W) int16 with -1 = ignored, or labels None.

    Both are arrays, or read from files on demand.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    images: Pixels
    labels: Pixels | None

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, number: int) -> str:
        """What to call an image in a message: its file, or its number where it has none."""
        return self.images.name(number) if isinstance(self.images, Lazy) else f"image {number}"

    def with_labels(self, labels: Pixels | None) -> Split:
        """The same images with other labels, or with none."""
        return replace(self, labels=labels)


def load_split(
    name: str, split: str, size: int | None = None, crops: str = "none", fit: str = "centre", resize: str = "nearest",
    clusters: int = 27,
) -> Split:  # fmt: skip
    """A split of a data set, squared to `size` pixels (scenes: always 128; else 320 when left out).

    `crops`, `fit` and `resize` say how the benchmarks' images become squares (see `images.Lazy`); a folder of
    one's own has `clusters` unnamed classes. Raises UserError for an unknown name or split, or data that is
    not there.
    """
    if is_folder(name):
        return _folder(Path(name), size or 320, clusters, crops, fit, resize)
    known(name)
    if split not in SPLITS[name]:
        raise UserError(f"{name}: no split {split!r}; choose from {', '.join(SPLITS[name])}")
    if name == "camvid":
        return _camvid(split, size or 320)
    if name in OFFICIAL:
        return _official(name, split, size or 320, crops, fit, resize)
    fine = _scenes(split)
    if name == "scenes":
        return fine
    to_coarse = np.array(scenes.FINE_TO_COARSE, dtype=np.int16)
    return Split(name, split, scenes.COARSE_CLASSES, fine.images, to_coarse[fine.labels])


def without_bad(split: Split) -> tuple[Split, list[str]]:
    """The split without the images that cannot be read, and what is wrong with each of those.

    Raises UserError when none is left.
    """
    if not isinstance(split.images, Lazy):
        return split, []
    kept, wrong = readable(split.images, split.labels)
    if not kept.any():
        raise UserError(f"{split.name}: none of {len(kept)} images can be read; the first: {wrong[0]}")
    labels = split.labels.only(kept) if split.labels is not None else None
    return replace(split, images=split.images.only(kept), labels=labels), wrong


def known(name: str) -> None:
    """Raises UserError unless `name` is a data set or a folder."""
    if name not in SPLITS and not is_folder(name):
        raise UserError(f"no data set named {name!r}; choose from {', '.join(SPLITS)}, or give a folder of images")


def is_folder(name: str) -> bool:
    """Whether `data` means a folder of one's own; a data set's name never does."""
    return name not in SPLITS and Path(name).is_dir()


def _official(name: str, split: str, size: int, crops: str, fit: str, resize: str) -> Split:
    about = OFFICIAL[name]
    images, labels = zip(*about.files(name, split, data_dir()), strict=True)
    cut = crops_of(crops if split.startswith("train") else "none")
    lazy = partial(Lazy, size=size, fit=fit, resize=resize, crops=cut)
    return Split(
        name, split, about.classes, lazy(images, read=about.read_image),
        lazy(labels, read=about.read_label, classes=about.class_of_id),
    )  # fmt: skip


def folder_files(folder: Path) -> list[Path]:
    """The image files under a folder, in the order of their names; links are not followed.

    Label maps, in a folder named `labels` at its top, are not among them.
    """
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDS and p.is_file() and not p.is_symlink())
    return sorted(p for p in found if p.relative_to(folder).parts[0] != "labels")


def _folder(folder: Path, size: int, clusters: int, crops: str, fit: str, resize: str) -> Split:
    """Any folder of images. `labels/NAME.png` beside them, where every image has one, are ids 0 to clusters - 1."""
    images = tuple(folder_files(folder))
    if not images:
        raise UserError(f"{folder}: holds no image ({', '.join(IMAGE_ENDS)}); name a folder of photographs")
    lazy = partial(Lazy, size=size, fit=fit, resize=resize, crops=crops_of(crops))
    labels = tuple(folder / "labels" / f"{image.stem}.png" for image in images)
    lacking = [label for label in labels if not label.is_file()]
    if lacking and len(lacking) < len(labels):
        raise UserError(f"{lacking[0]}: is missing; give every image a label map, or none")
    classes = tuple(f"cluster {number}" for number in range(clusters))
    ids = None if lacking else lazy(labels, read=read_ids, classes=np.arange(clusters))
    return Split(str(folder), "train", classes, lazy(images, read=read_rgb), ids)


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
    """Make or download a data set, and check that each split is complete; or pack the unlabelled `photos`."""
    if name == "photos":
        return photos.prepare(say)
    known(name)
    if name == "camvid":
        camvid.fetch(say)
    elif name in OFFICIAL:
        _prepare_official(name, say)
    elif name in SPLITS:
        say(f"{name}: rendered on this machine, nothing is downloaded")


def _prepare_official(name: str, say: Callable[[str], None]) -> None:
    """Take the files that lie there, or download them; then count them."""
    about = OFFICIAL[name]
    wanted = [split for split in about.splits if split != "trainaug"]
    try:
        counts = {split: len(about.files(name, split, data_dir())) for split in wanted}
    except UserError:
        downloads.fetch(about.folder, say)
        counts = {split: len(about.files(name, split, data_dir())) for split in wanted}
    if name == "msrc":
        msrc.check(data_dir() / about.folder)
    for split, count in counts.items():
        official = about.splits[split][1]
        note = "" if official in (None, count) else f"; officially {official:,}, so some may be missing"
        say(f"{name}/{split}: {count:,} images in {data_dir() / about.folder}{note}")


def class_shares(name: str) -> dict[str, tuple[int, np.ndarray]]:
    """For each labelled split: the number of images and each class's share of the labelled pixels."""
    shares = {}
    for split in (s for s in SPLITS.get(name, ("train",)) if s not in ("pretrain", "trainaug")):
        loaded = load_split(name, split, 128 if name in OFFICIAL else None)
        if loaded.labels is None:
            return {}
        counts = np.zeros(len(loaded.classes))
        for start in track(range(0, len(loaded), 64), f"Counting {name}/{split}"):
            labels = loaded.labels[start : start + 64]
            counts += np.bincount(labels[labels >= 0].astype(np.int64), minlength=len(counts))
        shares[split] = (len(loaded), counts / max(1, counts.sum()))
    return shares
