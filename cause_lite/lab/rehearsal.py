"""A dress rehearsal: miniature data sets in each official layout, and narrow random backbones in each weight format.

They go through the loaders, recipes and commands of the real thing on a CPU. What comes out is marked as a
rehearsal and is never a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.io
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from cause_lite.backbones.released import RELEASED
from cause_lite.checkpoints.released_files import released_state
from cause_lite.config import FitConfig
from cause_lite.datasets import scenes
from cause_lite.runtime.files import write_whole
from cause_lite.segmenter import Segmenter

COUNTS = {"train": 3, "val": 2}
WIDTH = 64

# The ids that each benchmark's label files give to what the scenes show, in the order of scenes.FINE_CLASSES.
COCO_IDS = (156, 105, 126, 123, 153, 154, 148, 168, 96, 127, 157, 2, 5, 8, 0, 17)
CITYSCAPES_IDS = (23, 23, 22, 22, 6, 4, 7, 21, 21, 11, 20, 26, 28, 29, 24, 25)
VOC_IDS = (0, 0, 0, 0, 0, 0, 0, 16, 16, 0, 0, 7, 6, 4, 15, 12)
POTSDAM_IDS = (0, 0, 2, 2, 5, 5, 0, 3, 3, 1, 1, 4, 4, 4, 5, 5)


def views(split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(image, class numbers) of a few scenes, oblong: 96 x 128."""
    for number in range(COUNTS[split]):
        view = scenes.render(0, split, number)
        yield view.image[16:112], view.labels[16:112]


def ids(labels: np.ndarray, table: tuple[int, ...]) -> np.ndarray:
    """Label ids of the scene's classes, with a part that is void (255)."""
    found = np.array(table, dtype=np.uint8)[labels]
    found[:8, :40] = 255
    return found


def write_cocostuff(root: Path) -> None:
    """images/{split}2017/ID.jpg, annotations/{split}2017/ID.png, curated/{split}2017/*.txt."""
    for split in COUNTS:
        part, names = f"{split}2017", []
        for number, (image, labels) in enumerate(views(split)):
            names.append(f"{number + 1:012d}")
            _save(root / "images" / part / f"{names[-1]}.jpg", image)
            _save(root / "annotations" / part / f"{names[-1]}.png", ids(labels, COCO_IDS))
        for suffix in ("", "_7"):
            _list(root / "curated" / part / f"Coco164kFull_Stuff_Coarse{suffix}.txt", names)


def write_cityscapes(root: Path) -> None:
    """leftImg8bit/{split}/CITY/..._leftImg8bit.png and gtFine/{split}/CITY/..._gtFine_labelIds.png."""
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for number, (image, labels) in enumerate(views(split)):
            name = f"{city}_{number:06d}_000019"
            _save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
            _save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids(labels, CITYSCAPES_IDS))


def write_pascalvoc(root: Path) -> None:
    """VOCdevkit/VOC2012: JPEGImages, SegmentationClass (palette PNG), ImageSets/Segmentation."""
    base, palette = root / "VOCdevkit" / "VOC2012", np.arange(768, dtype=np.uint8).tolist()
    for split in COUNTS:
        names = []
        for number, (image, labels) in enumerate(views(split)):
            names.append(f"2007_{10 * number + len(split):06d}")
            _save(base / "JPEGImages" / f"{names[-1]}.jpg", image)
            mask = Image.fromarray(ids(labels, VOC_IDS), mode="P")
            mask.putpalette(palette)
            _save(base / "SegmentationClass" / f"{names[-1]}.png", mask)
        _list(base / "ImageSets" / "Segmentation" / f"{split}.txt", names)


def write_potsdam(root: Path) -> None:
    """imgs/ID.mat with `img` (red, green, blue, infrared), gt/ID.mat with `gt`, and three lists."""
    for split, lists in (("train", ("unlabelled_train", "labelled_train")), ("val", ("labelled_test",))):
        names = []
        for number, (image, labels) in enumerate(views(split)):
            names.append(f"{split}_{number}")
            four = np.dstack([image, image[..., 1]])
            for folder, content in (("imgs", {"img": four}), ("gt", {"gt": ids(labels, POTSDAM_IDS).astype(np.int32)})):
                target = root / folder / f"{names[-1]}.mat"
                target.parent.mkdir(parents=True, exist_ok=True)
                scipy.io.savemat(target, content)
        for name, part in zip(lists, np.array_split(names, len(lists)), strict=True):
            _list(root / f"{name}.txt", list(part))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "cocostuff": write_cocostuff, "cityscapes": write_cityscapes, "pascalvoc": write_pascalvoc,
    "potsdam": write_potsdam,
}  # fmt: skip


def _save(path: Path, content: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def write_weights(name: str, folder: Path) -> None:
    """Random weights of a narrow stand-in for a backbone, in the format that its official file has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in RELEASED:
            _write_released(name, folder / f"{name}.pth")
            return
        narrow = {"embed_dim": WIDTH, "depth": 1, "num_heads": 2}
        vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **narrow)
    about = {"rehearsal": "random weights"} | {key: str(value) for key, value in narrow.items()}
    weights = {key: value.contiguous() for key, value in vit.state_dict().items()}
    write_whole(folder / f"{name}.safetensors", lambda part: save_file(weights, part, metadata=about))


def _write_released(name: str, path: Path) -> None:
    """As iBOT and MSN were released: a pickled dictionary of tensors, MSN's under `module.` and with its projector."""
    vit = VisionTransformer(img_size=224, patch_size=16, embed_dim=WIDTH, depth=1, num_heads=1, num_classes=0)
    prefix = "module." if name.startswith("msn") else ""
    tensors = {prefix + key: value for key, value in vit.state_dict().items()}
    if prefix:
        tensors["module.fc.fc1.weight"] = torch.zeros(4, WIDTH)
    write_whole(path, lambda part: torch.save({RELEASED[name].entry: tensors, "epoch": 1}, part))


def write_released(segmenter: Segmenter, files: dict[str, Path]) -> None:
    """The three files that the authors release of a row, holding this segmenter."""
    cluster = {"cluster_probe": segmenter.cluster_probe.centres.data}
    write_whole(files["segment"], lambda part: torch.save(released_state(segmenter), part))
    write_whole(files["cluster"], lambda part: torch.save(cluster, part))
    write_whole(files["modular"], lambda part: np.save(part, segmenter.codebook.cpu().numpy()))


def write_stage(root: Path, backbones: set[str]) -> None:
    """Everything that the rows need, under `root` as `$CAUSE_DATA`."""
    for folder, write in LAYOUTS.items():
        if not (root / folder).exists():
            write_whole(root / folder, write)
    for name in backbones:
        write_weights(name, root / "weights")


def rehearsed(config: FitConfig, patch: int) -> FitConfig:
    """A row's settings at the size of a rehearsal: few concepts, narrow heads, a handful of patches an image."""
    side = 4 * patch if patch > 8 else 8 * patch
    evaluated = (
        side + 4 * patch if config.data.eval_size else None
    )  # keeps what differs between training and evaluation
    return config.replace({"data.size": side, "data.eval_size": evaluated, "optimisation.batch_size": 8, "clusterbook.concepts": 16, "head.reduced_dim": 8, "head.projection_dim": 32, "head.bank_capacity": 4, "optimisation.precision": "fp32", "probe.epochs": 1, "head.epochs": 1})  # fmt: skip
