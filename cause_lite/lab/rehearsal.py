"""Write what a rehearsal runs on: miniature data sets in official layouts, narrow random backbones in official formats.

They go through the loaders, recipes and commands that the full data goes through, on a CPU. Records of it are marked
as a rehearsal's and are never results. Begin with `write_stage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from cause_lite.runtime.device import seeded
from cause_lite.runtime.files import write_whole
from cause_lite.segmenter import Segmenter

COUNTS = {"train": 3, "val": 2}
WIDTH = 64

# The ids that each benchmark's label files give to what the scenes show, in the order of scenes.FINE_CLASSES.
COCO_IDS = (156, 105, 126, 123, 153, 154, 148, 168, 96, 127, 157, 2, 5, 8, 0, 17)
CITYSCAPES_IDS = (23, 23, 22, 22, 6, 4, 7, 21, 21, 11, 20, 26, 28, 29, 24, 25)
VOC_IDS = (0, 0, 0, 0, 0, 0, 0, 16, 16, 0, 0, 7, 6, 4, 15, 12)
POTSDAM_IDS = (0, 0, 2, 2, 5, 5, 0, 3, 3, 1, 1, 4, 4, 4, 5, 5)


def oblong_scenes(split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the image (96, 128, 3) and the class numbers (96, 128) of `COUNTS[split]` scenes."""
    for number in range(COUNTS[split]):
        scene = scenes.render(0, split, number)
        yield scene.image[16:112], scene.labels[16:112]


def label_ids(labels: np.ndarray, table: tuple[int, ...]) -> np.ndarray:
    """Return a benchmark's label ids (H, W) uint8 of the scene's classes, with a part that is void (255)."""
    found = np.array(table, dtype=np.uint8)[labels]
    found[:8, :40] = 255
    return found


def write_cocostuff(root: Path) -> None:
    """Write images/{split}2017/ID.jpg, annotations/{split}2017/ID.png, curated/{split}2017/*.txt."""
    for split in COUNTS:
        part, names = f"{split}2017", []
        for number, (image, labels) in enumerate(oblong_scenes(split)):
            names.append(f"{number + 1:012d}")
            _save(root / "images" / part / f"{names[-1]}.jpg", image)
            _save(root / "annotations" / part / f"{names[-1]}.png", label_ids(labels, COCO_IDS))
        for suffix in ("", "_7"):
            _list(root / "curated" / part / f"Coco164kFull_Stuff_Coarse{suffix}.txt", names)


def write_cityscapes(root: Path) -> None:
    """Write leftImg8bit/{split}/CITY/..._leftImg8bit.png and gtFine/{split}/CITY/..._gtFine_labelIds.png."""
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for number, (image, labels) in enumerate(oblong_scenes(split)):
            name = f"{city}_{number:06d}_000019"
            _save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
            _save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", label_ids(labels, CITYSCAPES_IDS))


def write_pascalvoc(root: Path) -> None:
    """Write JPEGImages, SegmentationClass (palette PNG), ImageSets/Segmentation below VOCdevkit/VOC2012."""
    base, palette = root / "VOCdevkit" / "VOC2012", np.arange(768, dtype=np.uint8).tolist()
    for split in COUNTS:
        names = []
        for number, (image, labels) in enumerate(oblong_scenes(split)):
            names.append(f"2007_{10 * number + len(split):06d}")
            _save(base / "JPEGImages" / f"{names[-1]}.jpg", image)
            mask = Image.fromarray(label_ids(labels, VOC_IDS), mode="P")
            mask.putpalette(palette)
            _save(base / "SegmentationClass" / f"{names[-1]}.png", mask)
        _list(base / "ImageSets" / "Segmentation" / f"{split}.txt", names)


def write_potsdam(root: Path) -> None:
    """Write imgs/ID.mat with `img` (red, green, blue, infrared), gt/ID.mat with `gt`, and three lists."""
    for split, lists in (("train", ("unlabelled_train", "labelled_train")), ("val", ("labelled_test",))):
        names = []
        for number, (image, labels) in enumerate(oblong_scenes(split)):
            names.append(f"{split}_{number}")
            bands, found = np.dstack([image, image[..., 1]]), label_ids(labels, POTSDAM_IDS).astype(np.int32)
            for folder, content in (("imgs", {"img": bands}), ("gt", {"gt": found})):
                target = root / folder / f"{names[-1]}.mat"
                target.parent.mkdir(parents=True, exist_ok=True)
                scipy.io.savemat(target, content)
        for name, part in zip(lists, np.array_split(names, len(lists)), strict=True):
            _list(root / f"{name}.txt", list(part))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "cocostuff": write_cocostuff,
    "cityscapes": write_cityscapes,
    "pascalvoc": write_pascalvoc,
    "potsdam": write_potsdam,
}


def _save(path: Path, content: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(path, quality=95)  # of a JPEG; a PNG has none


def _list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def write_weights(name: str, folder: Path) -> None:
    """Write random weights of a narrow stand-in for a backbone, in the format that its official file has."""
    with seeded(0):
        if name in RELEASED:
            _write_released(name, folder / f"{name}.pth")
            return
        narrow: dict[str, Any] = {"embed_dim": WIDTH, "depth": 1, "num_heads": 2}
        vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **narrow)
    about = {"rehearsal": "random weights"} | {key: str(value) for key, value in narrow.items()}
    weights = {key: value.contiguous() for key, value in vit.state_dict().items()}
    write_whole(folder / f"{name}.safetensors", lambda part: save_file(weights, part, metadata=about))


def _write_released(name: str, path: Path) -> None:
    """Write a pickled dictionary of tensors as iBOT and MSN released; MSN's are under `module.`, with its projector."""
    vit = VisionTransformer(img_size=224, patch_size=16, embed_dim=WIDTH, depth=1, num_heads=1, num_classes=0)
    prefix = "module." if name.startswith("msn") else ""
    tensors = {prefix + key: value for key, value in vit.state_dict().items()}
    if prefix:
        tensors["module.fc.fc1.weight"] = torch.zeros(4, WIDTH)
    write_whole(path, lambda part: torch.save({RELEASED[name].entry: tensors, "epoch": 1}, part))


def write_released(segmenter: Segmenter, files: dict[str, Path]) -> None:
    """Write a segmenter as the three files that the authors release of a row."""
    cluster = {"cluster_probe": segmenter.cluster_probe.centres.data}
    write_whole(files["segment"], lambda part: torch.save(released_state(segmenter), part))
    write_whole(files["cluster"], lambda part: torch.save(cluster, part))
    write_whole(files["modular"], lambda part: np.save(part, segmenter.codebook.cpu().numpy()))


def write_stage(root: Path, backbones: set[str]) -> None:
    """Write everything that the rows need under `root`, which is to be `$CAUSE_DATA`."""
    for folder, write in LAYOUTS.items():
        if not (root / folder).exists():
            write_whole(root / folder, write)
    for name in backbones:
        write_weights(name, root / "weights")


MINIATURE = {
    "optimisation.batch_size": 8,
    "optimisation.precision": "fp32",
    "clusterbook.concepts": 16,
    "head.reduced_dim": 8,
    "head.projection_dim": 32,
    "head.bank_capacity": 4,
    "head.epochs": 1,
    "probe.epochs": 1,
}


def miniature(config: FitConfig, patch: int) -> FitConfig:
    """Return a row's settings at the size of a rehearsal: few concepts, narrow heads, a handful of patches an image.

    Images are scored larger than they are trained on where the row does so.
    """
    side = 4 * patch if patch > 8 else 8 * patch
    scored = side + 4 * patch if config.data.eval_size else None
    return config.replace(MINIATURE | {"data.size": side, "data.eval_size": scored})
