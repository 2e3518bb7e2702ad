"""Find a backbone by name: one that ships, a folder, a file that its authors released, or a timm model."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from cause_lite.backbones import efficientnet_lite
from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.centred import CentredBackbone
from cause_lite.backbones.convolutional import ConvBackbone, load_levels, load_network
from cause_lite.backbones.feature_store import cached_features
from cause_lite.backbones.positions import OFFSET
from cause_lite.backbones.released import RELEASED, read_encoder
from cause_lite.backbones.vit import VitBackbone, build_vit
from cause_lite.config import BackboneConfig, FitConfig
from cause_lite.datasets import load_split
from cause_lite.datasets.downloads import download
from cause_lite.datasets.images import LazyRows
from cause_lite.runtime.files import UserError, cache_dir, data_dir, is_path, project_dir, read_json
from cause_lite.runtime.provenance import canonical_json

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pth.tar")
VIT_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")  # of timm, with flexible sizes
CARDS = ("vit.json", "network.json")  # of a transformer, of a convolutional network; weights lie beside them
CARD_FIELDS = ("architecture", "window", "patch", "context")  # of a card: what decides the features beside weights
SHAPE_FIELDS = {"grid", "patch", "width", "depth", "heads"}  # of a card's `architecture`
CENTRE_SIZE = 320  # pixels a side of the photographs that give a centre
TRAINING = "training"  # the centre of whatever images a fit learns from
Positions = Literal["timm", "authors"]


def load_backbone(backbone: str | BackboneConfig, positions: Positions = "timm") -> Backbone:
    """Return a frozen backbone with its weights.

    Weights that lie in `$CAUSE_DATA`/weights/NAME.safetensors, .pth or .pth.tar are taken from there.

    Parameters
    ----------
    backbone
        A name or settings with one: a backbone that ships or was pre-trained here (`scenes`, `camvid`, `photos`), a
        folder that `cause-lite pretrain` wrote, `efficientnet-lite2`, a released file (`ibot_vit_base_16`,
        `msn_vit_small_16`), or a vision transformer or convolutional network of timm.
    positions
        How positions are resized for images of another size than in pre-training: as timm does, or as the authors' code
        does, which is what their published segmenters saw (see `positions`). A convolutional network has none.

    Raises
    ------
    UserError
        When the name is unknown, its weights or its centre cannot be had, or a setting is not for it.
    """
    if positions not in get_args(Positions):
        raise UserError(f"positions={positions!r}: must be one of {', '.join(get_args(Positions))}")
    choice = FitConfig().replace({"backbone": backbone}).backbone
    if choice.centre == TRAINING:
        raise UserError(f"backbone {choice.name!r}: only a fit can be centred on its training images; name a data set")
    plain = _load_plain(choice, OFFSET if positions == "authors" else None)
    if not choice.centre:
        return plain
    images = load_split(choice.centre, "train", CENTRE_SIZE, fit=choice.fit, resize="bilinear").images
    plain.prepare("fp64")  # so that the centre is the same on every processor
    moved = centred(plain, images, f"Features of {choice.centre}/train")
    moved.prepare()
    return moved


def centred(plain: Backbone, images: np.ndarray | LazyRows, label: str) -> CentredBackbone:
    """Return a backbone from whose patches the mean patch of images (N, H, W, 3) is subtracted."""
    return CentredBackbone(plain, mean_patch(plain, images, label), plain.name).to(plain.device)


def mean_patch(plain: Backbone, images: np.ndarray | LazyRows, label: str) -> Float[Tensor, " d"]:
    """Return the mean patch of images (N, H, W, 3); no label is read."""
    features = cached_features(plain, images, label)
    total = torch.zeros(plain.dim, dtype=torch.float64)
    for start in range(0, len(features), 32):
        total += features[start : start + 32].double().sum((0, 1))
    return (total / (len(features) * features.shape[1])).float()


def _load_plain(choice: BackboneConfig, position_offset: float | None) -> Backbone:
    """Return a backbone without a centre."""
    name = choice.name
    convolves = bool(choice.levels or choice.patch or choice.margin) or choice.untrained is not None
    if folder := find_folder(name):
        if convolves:
            raise UserError(f"backbone {name!r}: has a folder of its own; it takes `centre`, `fit` and `context` alone")
        return _with_context(_from_folder(folder, position_offset), choice)
    if has_card(name):
        raise UserError(f"backbone {name!r}: its weights do not ship; make them with `cause-lite pretrain {name}`")
    if convolves or name == efficientnet_lite.NAME or _is_other_network(name):
        return load_network(choice, local_weights(name))
    if name in RELEASED:
        encoder = RELEASED[name]
        path = local_weights(name) or download(encoder.url, weights_dir() / f"{name}.pth")
        offset = encoder.position_offset if position_offset else None
        vit = read_encoder(path, encoder.entry)
        return _with_context(VitBackbone(vit, name, IMAGE_MEAN, IMAGE_STD, position_offset=offset), choice)
    return _with_context(_from_timm(name, position_offset), choice)


def _with_context(backbone: Backbone, choice: BackboneConfig) -> Backbone:
    """Let a convolutional backbone average over the context that settings ask for; a transformer has none."""
    if choice.context is not None and not isinstance(backbone, ConvBackbone):
        raise UserError(f"backbone {choice.name!r}: a transformer has no `context`; leave it out")
    if choice.context is not None and isinstance(backbone, ConvBackbone):
        backbone.context = choice.context
    return backbone


def bundled_dir() -> Path:
    """Return the folder of the backbones that ship, or whose cards do."""
    return project_dir() / "data" / "backbones"


def pretrained_dir(name: str) -> Path:
    """Return the folder that `cause-lite pretrain NAME` writes to by default."""
    return cache_dir() / "backbones" / name


def labels_seen(name: str) -> str | None:
    """Return the labels that the weights of a backbone were trained on; None where none are known of."""
    if name == efficientnet_lite.NAME:
        return efficientnet_lite.LABELS
    known = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return "ImageNet's class labels" if known and known.num_classes and re.search(r"in\d+k", known.tag or "") else None


def licence_of(name: str) -> str | None:
    """Return the licence of a backbone's weights; None where it is not known."""
    if name == efficientnet_lite.NAME:
        return efficientnet_lite.LICENCE
    if not is_path(name) and (bundled_dir() / name).is_dir():
        return "MIT (made by cause-lite)"
    known = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return (known and known.license) or None


def has_card(name: str) -> bool:
    """Return whether a name is that of a backbone whose card ships, or that was pre-trained here."""
    folders = () if is_path(name) else (bundled_dir() / name, pretrained_dir(name))
    return any((folder / card).exists() for folder in folders for card in CARDS)


def find_folder(name: str, stored: bool = False) -> Path | None:
    """Return the folder with the weights of a backbone that has one.

    A name `stored` in a model was settled when the model was fitted: one that ships comes first. Raises UserError where
    a name is both that of a backbone that ships or was pre-trained here and that of another folder.
    """
    own = Path(name).expanduser()
    folders = (own,) if is_path(name) else (bundled_dir() / name, pretrained_dir(name), own)
    found = [folder for folder in folders if weights_in(folder)]
    if found and own in found[1:] and not stored and own.resolve() != found[0].resolve():
        raise UserError(
            f"backbone {name!r}: is the name of one that ships or was pre-trained here, and of a folder; "
            f"write ./{name} for the folder, or rename it"
        )
    return found[0] if found else None


def weights_in(folder: Path) -> Path | None:
    """Return the file with the weights of a backbone in a folder."""
    paths = (folder / Path(card).with_suffix(".safetensors") for card in CARDS)
    return next((path for path in paths if path.exists()), None)


def folder_fingerprint(folder: Path | None) -> str | None:
    """Return a hash of the weights of a backbone in a folder and of `CARD_FIELDS`; None without a folder.

    Unlike `Backbone.fingerprint`, nothing is loaded, and versions do not count.
    """
    path = weights_in(folder) if folder else None
    if path is None or not (card_path := path.with_suffix(".json")).exists():
        return None
    card = read_json(card_path)
    digest = hashlib.sha256(path.read_bytes())
    digest.update(canonical_json({field: card.get(field) for field in CARD_FIELDS}).encode())
    return digest.hexdigest()


def weights_dir() -> Path:
    """Return the folder where weights files are looked for and downloaded to."""
    return data_dir() / "weights"


def local_weights(name: str) -> Path | None:
    """Return the weights file of that name on this machine; None when there is none."""
    paths = (weights_dir() / f"{name}{suffix}" for suffix in WEIGHT_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _is_other_network(name: str) -> bool:
    """Return whether timm knows a network of that name that is no vision transformer."""
    return timm.is_model(name) and not timm.models.is_model_in_modules(name.partition(".")[0], VIT_MODULES)


def _from_timm(name: str, position_offset: float | None) -> Backbone:
    """Return a timm ViT with its weights, from a local file or timm's hub."""
    path = local_weights(name)
    options: dict[str, Any] = {}
    if path is not None:
        options = {"pretrained_cfg_overlay": {"file": str(path)}, **_narrow_sizes(path)}
    try:
        vit: Any = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True, **options)
    except Exception as error:  # timm and its hub raise many kinds
        raise UserError(
            f"backbone {name!r}: neither bundled, a folder, nor a timm model with weights at hand "
            f"({' '.join(str(error).split())[:300]}); a file can lie in {weights_dir()}"
        ) from error
    return VitBackbone(
        vit, name, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"], position_offset=position_offset
    )


def _narrow_sizes(path: Path) -> dict[str, int]:
    """Return the width, depth and heads of a rehearsal's stand-in, whose header names them; {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is not a safetensors file ({error}); delete it") from error
    return {key: int(header[key]) for key in ("embed_dim", "depth", "num_heads")} if "rehearsal" in header else {}


def _from_folder(folder: Path, position_offset: float | None) -> Backbone:
    """Return the backbone that `cause-lite pretrain` wrote into a folder, by its card."""
    if weights_in(folder) == folder / "network.safetensors":
        return load_levels(folder)
    card_path, path = folder / "vit.json", folder / "vit.safetensors"
    card = read_json(card_path)
    _check_card(card, card_path)
    shape = card["architecture"]
    try:
        weights = load_file(path)
        if sum(value.numel() for value in weights.values()) < shape["depth"] * shape["width"] ** 2:
            raise UserError(f"{path}: is smaller than the network that vit.json describes")
        vit = build_vit(**shape)
        vit.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: is not the file that vit.json describes ({reason})") from error
    return VitBackbone(vit, card["name"], IMAGE_MEAN, IMAGE_STD, card.get("window"), position_offset)


def _check_card(card: dict, path: Path) -> None:
    """Raise UserError naming the field of vit.json that is absent or that no backbone could have."""
    shape, name, window = card.get("architecture"), card.get("name"), card.get("window")
    if not isinstance(shape, dict) or shape.keys() != SHAPE_FIELDS:
        raise UserError(f"{path}: `architecture` must hold grid, patch, width, depth and heads, and nothing else")
    if not all(type(size) is int and 1 <= size <= 4096 for size in shape.values()) or shape["width"] % shape["heads"]:
        raise UserError(f"{path}: `architecture` holds sizes that no backbone has: {shape}")
    if not isinstance(name, str):
        raise UserError(f"{path}: `name` is {name!r}; expected a text")
    if not (window is None or (type(window) is int and window >= shape["patch"])):
        raise UserError(f"{path}: `window` is {window!r}; expected null or an int of at least the patch")
