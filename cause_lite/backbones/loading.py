"""Find a backbone by name: one that ships, a folder, a file that its authors released, or a timm model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from cause_lite.backbones.convolutional import load_levels
from cause_lite.backbones.efficientnet_lite import NAME as EFFICIENTNET_LITE2
from cause_lite.backbones.joined_levels import load_joined
from cause_lite.backbones.positions import OFFSET
from cause_lite.backbones.released import RELEASED, read_encoder
from cause_lite.backbones.vit import VitBackbone, build_vit
from cause_lite.datasets.downloads import download
from cause_lite.runtime.files import UserError, cache_dir, data_dir, project_dir, read_json
from cause_lite.runtime.provenance import canonical_json

LABELS_SEEN = {EFFICIENTNET_LITE2: "ImageNet's class labels, though on no segmentation label"}  # by the weights' maker
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pth.tar")
VIT_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")  # of timm, with flexible sizes
TRANSFORMER_WEIGHTS, CONVOLUTIONAL_WEIGHTS = "vit.safetensors", "network.safetensors"  # in a backbone's folder
CARD_FIELDS = ("architecture", "window", "patch", "context")  # of a card: what decides the features beside weights
SHAPE_FIELDS = {"grid", "patch", "width", "depth", "heads"}  # of a card's `architecture`
Positions = Literal["timm", "authors"]


def load_backbone(name: str, positions: Positions = "timm") -> Backbone:
    """Return a frozen backbone with its weights.

    Weights that lie in `$CAUSE_DATA`/weights/NAME.safetensors, .pth or .pth.tar are taken from there.

    Parameters
    ----------
    name
        A backbone that ships or was pre-trained here (`scenes`, `camvid`, `photos`), a folder that `cause-lite
        pretrain` wrote, `efficientnet-lite2`, a released file (`ibot_vit_base_16`, `msn_vit_small_16`), or a timm name.
        With settings behind it, a timm name is a convolutional network's: `resnet18?levels=3,4`; any other can be
        centred on a data set: `scenes?centre=msrc`; and `photos?context=0` averages nothing (see `joined_levels`).
    positions
        How positions are resized for images of another size than in pre-training: as timm does, or as the authors' code
        does, which is what their published segmenters saw (see `positions`). A convolutional network has none.

    Raises
    ------
    UserError
        When the name is unknown, its weights cannot be had, or positions cannot be resized as asked for.
    """
    if positions not in get_args(Positions):
        raise UserError(f"positions={positions!r}: must be one of {', '.join(get_args(Positions))}")
    authors = positions == "authors"
    if path := folder_weights(name):
        levels = path.name == CONVOLUTIONAL_WEIGHTS
        return load_levels(path.parent) if levels else _from_folder(path.parent, OFFSET if authors else None)
    if has_folder(name):
        raise UserError(f"backbone {name!r}: its weights do not ship; make them with `cause-lite pretrain {name}`")
    if "?" in name or name == EFFICIENTNET_LITE2:
        model = name.partition("?")[0]
        return load_joined(name, local_weights(model), load_backbone(model) if has_folder(model) else None)
    if name in RELEASED:
        encoder = RELEASED[name]
        path = local_weights(name) or download(encoder.url, weights_dir() / f"{name}.pth")
        offset = encoder.position_offset if authors else None
        return VitBackbone(read_encoder(path, encoder.entry), name, IMAGE_MEAN, IMAGE_STD, position_offset=offset)
    return _from_timm(name, OFFSET if authors else None)


def bundled_dir() -> Path:
    """Return the folder of the backbones that ship, or whose cards do."""
    return project_dir() / "data" / "backbones"


def labels_seen(name: str) -> str | None:
    """Return the labels that the weights of a backbone were trained on; None where none are known of."""
    return LABELS_SEEN.get(name.partition("?")[0])


def has_folder(name: str) -> bool:
    """Return whether a name is that of a backbone in a folder: one that ships, or one that was pre-trained here."""
    cards = ("vit.json", "network.json")
    return any((folder / card).exists() for folder in (bundled_dir() / name, pretrained_dir(name)) for card in cards)


def folder_weights(name: str) -> Path | None:
    """Return the file from which `load_backbone` reads a backbone in a folder; None for any other backbone."""
    folders = (bundled_dir() / name, pretrained_dir(name), Path(name))
    files = (TRANSFORMER_WEIGHTS, CONVOLUTIONAL_WEIGHTS)
    return next((path for folder in folders for file in files if (path := folder / file).exists()), None)


def folder_fingerprint(name: str) -> str | None:
    """Return a hash of the weights of a backbone in a folder and of `CARD_FIELDS`; None for any other backbone.

    Settings that follow a `?` in the name are left out. Unlike `Backbone.fingerprint`, nothing is loaded, and versions
    do not count.
    """
    path = folder_weights(name.partition("?")[0])
    if path is None or not (card_path := path.with_suffix(".json")).exists():
        return None
    card = read_json(card_path)
    digest = hashlib.sha256(path.read_bytes())
    digest.update(canonical_json({field: card.get(field) for field in CARD_FIELDS}).encode())
    return digest.hexdigest()


def pretrained_dir(name: str) -> Path:
    """Return the folder that `cause-lite pretrain NAME` writes to by default."""
    return cache_dir() / "backbones" / name


def weights_dir() -> Path:
    """Return the folder where weights files are looked for and downloaded to."""
    return data_dir() / "weights"


def local_weights(name: str) -> Path | None:
    """Return the weights file of that name on this machine; None when there is none."""
    paths = (weights_dir() / f"{name}{suffix}" for suffix in WEIGHT_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _from_timm(name: str, position_offset: float | None) -> Backbone:
    """Return a timm ViT with its weights, from a local file or timm's hub."""
    _check_transformer(name)
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


def _check_transformer(name: str) -> None:
    """Raise UserError when timm knows a network of that name that is no vision transformer."""
    if timm.is_model(name) and not timm.models.is_model_in_modules(name.partition(".")[0], VIT_MODULES):
        raise UserError(
            f"backbone {name!r}: is no vision transformer (ViT), such as vit_small_patch8_224.dino; a convolutional "
            f"network is named with its levels, as in resnet18.a1_in1k?levels=3,4"
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
    """Return the backbone that `cause-lite pretrain` wrote: vit.json says what it is, vit.safetensors holds it."""
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
