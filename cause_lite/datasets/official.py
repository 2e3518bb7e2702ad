"""The benchmarks on their official files: which files a split has, and which class each label id is.

COCO-Stuff (27, 81 and 171 classes), Cityscapes, Pascal VOC 2012, Potsdam-3, MSRC, each under `$CAUSE_DATA`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import Cityscapes
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights

from cause_lite.datasets import msrc
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.readers import read_ids, read_mat_ids, read_mat_rgb, read_rgb
from cause_lite.datasets.split import Split
from cause_lite.runtime.files import UserError, data_dir

TAXONOMIES = json.loads((Path(__file__).parent / "taxonomies.json").read_text(encoding="utf-8"))
Pairs = list[tuple[Path, Path]]


@dataclass(frozen=True)
class Official:
    """A benchmark.

    Parameters
    ----------
    folder
        Its folder under the data root.
    classes
        The class names, by class number.
    class_of_id
        The class number of each label id, -1 where ignored.
    splits
        For each split a function from the folder to its (image, label) files, and their official number (None: not
        known).
    read_image, read_label
        How a file is read.
    """

    folder: str
    classes: tuple[str, ...]
    class_of_id: np.ndarray
    splits: dict[str, tuple[Callable[[Path], Pairs], int | None]]
    read_image: Callable[[Path], Image.Image] = read_rgb
    read_label: Callable[[Path], Image.Image] = read_ids

    def files(self, name: str, split: str, root: Path) -> Pairs:
        """Return the (image, label) files of a split.

        Raises
        ------
        UserError
            Naming the first file that is absent.
        """
        pairs = self.splits[split][0](root / self.folder)
        if not pairs:
            raise UserError(f"{name}: no images of {split} under {root / self.folder}; run `cause-lite data {name}`")
        for pair in pairs:
            for file in pair:
                if not file.is_file():
                    raise UserError(f"{name}: {file} is missing; `cause-lite data {name}` says how to get it")
        return pairs


def _listed(path: Path) -> list[str]:
    """Return the names in a list file, a line each. Raises UserError when it is absent, damaged, or leads elsewhere."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: could not be read ({error}); it is part of the data set") from error
    names = [name for name in names if name]
    for name in names:
        if Path(name).name != name or len(name.encode()) > 200 or "\0" in name:
            raise UserError(f"{path}: {name[:60]!r} is not a plain file name")
    return names


def _coco(part: str, curated: str) -> Callable[[Path], Pairs]:
    def files(root: Path) -> Pairs:
        names = _listed(root / "curated" / part / curated)
        return [(root / "images" / part / f"{n}.jpg", root / "annotations" / part / f"{n}.png") for n in names]

    return files


def _cityscapes(split: str) -> Callable[[Path], Pairs]:
    def files(root: Path) -> Pairs:
        found = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        return [(file, root / "gtFine" / split / file.parent.name / label(file)) for file in found]

    def label(file: Path) -> str:
        return f"{file.name.removesuffix('_leftImg8bit.png')}_gtFine_labelIds.png"

    return files


def _voc(split: str) -> Callable[[Path], Pairs]:
    def files(root: Path) -> Pairs:
        base = root / "VOCdevkit" / "VOC2012"
        names = _listed(base / "ImageSets" / "Segmentation" / f"{split}.txt")
        masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
        return [(base / "JPEGImages" / f"{n}.jpg", base / masks / f"{n}.png") for n in names]

    return files


def _potsdam(*lists: str) -> Callable[[Path], Pairs]:
    def files(root: Path) -> Pairs:
        names = [name for part in lists for name in _listed(root / f"{part}.txt")]
        return [(root / "imgs" / f"{n}.mat", root / "gt" / f"{n}.mat") for n in names]

    return files


def _coco_names(name: str) -> tuple[str, ...]:
    """Return the class names of a map from COCO's ids: things by their category (id + 1), stuff from 91 on."""
    things = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    by_id = [*things[1:], "N/A", *TAXONOMIES["stuff"]]
    names = {}
    for number, kind in enumerate(TAXONOMIES[name]["class_of_id"]):
        if kind >= 0:
            names[kind] = "stuff" if name == "coco81" and kind == 0 else by_id[number]
    return tuple(names[kind] for kind in sorted(names))


def _coco_set(name: str, val: str, count: int | None) -> Official:
    names = tuple(TAXONOMIES[name].get("names") or _coco_names(name))
    full = "Coco164kFull_Stuff_Coarse.txt"
    splits = {"train": (_coco("train2017", full), 49_629), "val": (_coco("val2017", val), count)}
    return Official("cocostuff", names, np.array(TAXONOMIES[name]["class_of_id"]), splits)


def load_official(name: str, split: str, squaring: Squaring) -> Split:
    """Return a benchmark's split; crops are taken of training images alone.

    Raises
    ------
    UserError
        When files are missing.
    """
    about = OFFICIAL[name]
    images, labels = zip(*about.files(name, split, data_dir()), strict=True)
    squaring = squaring if split.startswith("train") else replace(squaring, crops="none")
    return Split(
        name,
        split,
        about.classes,
        LazyRows(images, about.read_image, squaring),
        LazyRows(labels, about.read_label, squaring, classes=about.class_of_id),
    )


OFFICIAL = {
    "cocostuff27": _coco_set("cocostuff27", "Coco164kFull_Stuff_Coarse_7.txt", 2_175),
    "coco81": _coco_set("coco81", "Coco164kFull_Stuff_Coarse.txt", None),
    "coco171": _coco_set("coco171", "Coco164kFull_Stuff_Coarse.txt", None),
    "cityscapes": Official(
        folder="cityscapes",
        classes=tuple(c.name for c in Cityscapes.classes if 7 <= c.id <= 33),
        class_of_id=np.maximum(np.arange(34) - 7, -1),
        splits={"train": (_cityscapes("train"), 2_975), "val": (_cityscapes("val"), 500)},
    ),
    "pascalvoc": Official(
        folder="pascalvoc",
        classes=tuple(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]),
        class_of_id=np.arange(21),
        splits={
            "train": (_voc("train"), 1_464),
            "trainaug": (_voc("trainaug"), 10_582),
            "val": (_voc("val"), 1_449),
        },
    ),
    "potsdam3": Official(
        folder="potsdam",
        classes=("roads and cars", "buildings and clutter", "vegetation and trees"),
        class_of_id=np.array([0, 1, 2, 2, 0, 1]),
        splits={
            "train": (_potsdam("unlabelled_train", "labelled_train"), 7_695),
            "val": (_potsdam("labelled_test"), 855),
        },
        read_image=read_mat_rgb,
        read_label=read_mat_ids,
    ),
    "msrc": Official(
        folder=msrc.FOLDER,
        classes=msrc.CLASSES,
        class_of_id=msrc.CLASS_OF_ID,
        splits={split: (msrc.split_files(split), count) for split, (_, count) in msrc.SPLITS.items()},
        read_label=msrc.read_mask,
    ),
}
