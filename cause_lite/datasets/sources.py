"""The benchmarks' public sources: where each is, its terms, and what must be had by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cause_lite.datasets.archives import Archive, fetch_archive
from cause_lite.runtime.files import UserError, data_dir, locked

COCO_IMAGES = "http://images.cocodataset.org/zips"
COCO = (
    Archive(
        f"{COCO_IMAGES}/train2017.zip",
        most_bytes=25 * 10**9,
        most_files=130_000,
        places={"train2017/": "images/train2017/"},
    ),
    Archive(
        f"{COCO_IMAGES}/val2017.zip",
        most_bytes=2 * 10**9,
        most_files=6_000,
        places={"val2017/": "images/val2017/"},
    ),
    Archive(
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
        most_bytes=4 * 10**9,
        most_files=130_000,
        places={"train2017/": "annotations/train2017/", "val2017/": "annotations/val2017/"},
    ),
    Archive(
        "https://www.robots.ox.ac.uk/~xuji/datasets/COCOStuff164kCurated.tar.gz",
        most_bytes=10**9,
        most_files=1_000,
        places={
            "COCO/COCOStuff164k/curated/": "curated/",
            "COCOStuff164k/curated/": "curated/",
            "curated/": "curated/",
        },
    ),
)
PASCAL_VOC = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    digest="6cd6e144f989b92b3379bac3b3de84fd",
    most_bytes=4 * 10**9,
    most_files=60_000,
    places={"VOCdevkit/": "VOCdevkit/"},
)
POTSDAM = Archive(
    "https://www.robots.ox.ac.uk/~xuji/datasets/Potsdam.tar.gz",
    most_bytes=10**10,
    most_files=40_000,
    places={"potsdam/": "", "Potsdam/": "", "": ""},
)
MSRC = Archive(
    "https://download.microsoft.com/download/3/3/9/339D8A24-47D7-412F-A1E8-1A415BC48A15/"
    "msrc_objcategimagedatabase_v2.zip",
    most_bytes=10**9,
    most_files=2_000,
    places={
        f"{top}{part}/": f"{part}/"
        for part in ("Images", "GroundTruth")
        for top in ("", "MSRC_ObjCategImageDatabase_v2/")
    },
)
ARCHIVES = {"cocostuff": COCO, "pascalvoc": (PASCAL_VOC,), "potsdam": (POTSDAM,), "MSRC": (MSRC,)}
LICENCES = {
    "cocostuff": "COCO images: Flickr's terms of use; annotations: CC BY 4.0. https://cocodataset.org/#termsofuse",
    "pascalvoc": "Pascal VOC 2012: images under Flickr's terms of use. http://host.robots.ox.ac.uk/pascal/VOC/",
    "potsdam": "Potsdam: ISPRS 2D semantic labelling contest; free for research. https://www.isprs.org",
    "MSRC": (
        "MSRC, version 2 (Microsoft Research Cambridge): for research use only. "
        "https://www.microsoft.com/en-us/research/project/image-understanding/"
    ),
}
BY_HAND = {
    "cityscapes": (
        "Cityscapes needs an account (free for research): sign up at https://www.cityscapes-dataset.com, download "
        "gtFine_trainvaltest.zip (package 1) and leftImg8bit_trainvaltest.zip (package 3), and unpack both into {root}"
    )
}


def fetch(folder: str, say: Callable[[str], None]) -> Path:
    """Make sure that a data set lies at `data_dir()`/folder: download and unpack what is not there yet.

    Each archive is marked as unpacked once it is, so a run that was cut off goes on with the next one.

    Raises
    ------
    UserError
        Saying what to do by hand where a login is needed; when nothing can be reached, or another file came.
    """
    root = data_dir() / folder
    if folder in BY_HAND:
        raise UserError(BY_HAND[folder].format(root=root))
    with locked(root):
        say(LICENCES[folder])
        for archive in ARCHIVES[folder]:
            fetch_archive(archive, root, say)
    return root
