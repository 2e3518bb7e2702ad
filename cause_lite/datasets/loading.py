"""Data sets by name: `scenes` (rendered), `photos`, the published ones, or any folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cause_lite.datasets import photos, scenes
from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.folder_survey import survey
from cause_lite.datasets.folders import load_folder
from cause_lite.datasets.images import Squaring
from cause_lite.datasets.registry import PUBLISHED
from cause_lite.datasets.scenes import storage
from cause_lite.datasets.split import Split
from cause_lite.runtime.files import UserError, data_dir
from cause_lite.runtime.progress import track

SPLITS = {
    "scenes": tuple(scenes.SPLITS),
    "scenes-coarse": tuple(scenes.SPLITS),
    "photos": ("train",),
    **{name: tuple(about.splits) for name, about in PUBLISHED.items()},
}
RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
SQUARE_SIZE = 320  # pixels a side where none is asked for; `scenes` has its own


def load_split(
    name: str | Path,
    split: str,
    size: int | None = None,
    crops: str = "none",
    fit: str = "centre",
    resize: str | None = None,
    clusters: int | None = None,
    reading: Reading | None = None,
) -> Split:
    """Return a split of a data set, as squares.

    Parameters
    ----------
    name, split
        The data set's name or a folder; a part of it, such as train.
    size
        Pixels a side; 128 for `scenes` and 320 for others when left out.
    crops, fit, resize
        How images become squares; see `images.Squaring`. CamVid and photos are scaled bilinearly when `resize` is left
        out, others by the nearest pixel. The crops of `scenes` must be none.
    clusters
        How many clusters to find in a folder of one's own; see `folders.load_folder`. Other data sets have as many as
        classes.
    reading
        Window and bands of the images of a folder of one's own; other data sets are read as they are.

    Raises
    ------
    UserError
        For an unknown name or split, an option that the data set does not have, or data that is not there.
    """
    if is_folder(name):
        squaring = Squaring(size or SQUARE_SIZE, crops, fit, resize or "nearest")
        return load_folder(Path(name), clusters, squaring, reading)
    name = str(name)
    check_name(name)
    if clusters is not None:
        raise UserError(
            f"{name}: data.clusters is for a folder of your own; this data set has a cluster for each class"
        )
    if reading is not None:
        raise UserError(f"{name}: data.window and data.bands are for a folder of your own; leave them out")
    if split not in SPLITS[name]:
        raise UserError(f"{name}: no split {split!r}; choose from {', '.join(SPLITS[name])}")
    if about := PUBLISHED.get(name):
        return about.load(name, split, Squaring(size or SQUARE_SIZE, crops, fit, resize or about.resize))
    if name == "photos":
        return photos.load_split(Squaring(size or SQUARE_SIZE, crops, fit, resize or "bilinear"))
    if crops != "none":
        raise UserError(f"{name}: data.crops must be 'none', not {crops!r}; its images are not cropped")
    images, labels = storage.load(split, size or scenes.IMAGE_SIZE, RESAMPLING[resize or "nearest"])
    if name == "scenes":
        return Split(name, split, scenes.FINE_CLASSES, images, labels)
    to_coarse = np.array(scenes.FINE_TO_COARSE, dtype=np.int16)
    return Split(name, split, scenes.COARSE_CLASSES, images, to_coarse[labels])


def check_name(name: str | Path) -> None:
    """Raise UserError unless `name` is a data set or a folder."""
    if not is_folder(name) and name not in SPLITS:
        raise UserError(f"no data set named {str(name)!r}; choose from {', '.join(SPLITS)}, or give a folder of images")


def is_folder(name: str | Path) -> bool:
    """Return whether a name means a folder of one's own: a path, or a folder here whose name is no data set's.

    Raises UserError for the name of a data set that is a folder of images here too; its own folder is none.
    """
    folder = Path(name)
    if isinstance(name, Path) or name not in SPLITS or not folder.is_dir():
        return folder.is_dir()
    own = data_dir() / (PUBLISHED[name].folder if name in PUBLISHED else name)
    if not (own.is_dir() and own.samefile(folder)) and survey(folder).images:
        raise UserError(
            f"{name}: is the name of a data set and of a folder of images here; write .{os.sep}{name} for the folder, "
            "or run this elsewhere for the data set"
        )
    return False


def prepare(name: str, say: Callable[[str], None]) -> None:
    """Make or download a data set, and check that each split is complete.

    Parameters
    ----------
    name
        The data set's name; a folder, which is taken as it is; or `photos`, unlabelled photographs for pre-training.
    say
        Is called with each line to show.

    Raises
    ------
    UserError
        For an unknown name, a data set that must be had by hand, or a download that fails.
    """
    check_name(name)
    if is_folder(name):
        return
    if name == "photos":
        photos.prepare(say)
    elif name in PUBLISHED:
        _prepare_published(name, say)
    else:
        say(f"{name}: rendered on this machine, nothing is downloaded")


def _prepare_published(name: str, say: Callable[[str], None]) -> None:
    """Take the files that lie there, or download them; then check and count them."""
    about = PUBLISHED[name]
    try:
        about.counts(name)
    except UserError:
        about.fetch(say)
    about.check(name)
    for split, count in about.counts(name).items():
        official = about.splits[split][1]
        note = "" if official in (None, count) else f"; officially {official:,}, so some may be missing"
        say(f"{name}/{split}: {count:,} images in {about.root}{note}")


def incomplete(name: str) -> str:
    """Return in words what a published data set lacks on this machine; an empty text where it lacks nothing."""
    lacking = []
    for split, count in PUBLISHED[name].counts(name).items():
        if (official := PUBLISHED[name].splits[split][1]) not in (None, count):
            lacking.append(f"{name}/{split} has {count:,} of {official:,} images")
    return ", ".join(lacking)


def class_shares(name: str) -> dict[str, tuple[int, np.ndarray]]:
    """Return for each labelled split its number of images and each class's share of the labelled pixels."""
    shares = {}
    for split in (s for s in SPLITS.get(name, ("train",)) if s not in ("pretrain", "trainaug")):
        loaded = load_split(name, split, 128 if name in PUBLISHED else None)
        if loaded.labels is None:
            return {}
        counts = np.zeros(len(loaded.classes))
        for start in track(range(0, len(loaded), 64), f"Counting {name}/{split}"):
            labels = loaded.labels[start : start + 64]
            counts += np.bincount(labels[labels >= 0].astype(np.int64), minlength=len(counts))
        shares[split] = (len(loaded), counts / max(1, counts.sum()))
    return shares
