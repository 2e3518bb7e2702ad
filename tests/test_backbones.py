"""Cached features are never another backbone's or other images'; positions are resized as asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cause_lite.backbones import Backbone, cached_features, load_backbone
from cause_lite.backbones.backbone import IMAGE_MEAN, IMAGE_STD
from cause_lite.backbones.convolutional import ConvBackbone, build_levels, widths_of
from cause_lite.backbones.positions import resize_positions
from cause_lite.backbones.vit import VitBackbone
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.datasets.picture_files import stored_rgb
from cause_lite.lab import rehearsal
from cause_lite.runtime.files import UserError


def plain_backbone(window: int | None = None, mean: tuple = IMAGE_MEAN, **changes) -> Backbone:
    """A narrow ViT with seeded weights; `changes` are settings of timm's ViT."""
    torch.manual_seed(0)
    settings = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0} | changes
    vit = timm.create_model("vit_small_patch8_224.dino", dynamic_img_size=True, **settings)
    return VitBackbone(vit, "plain", mean, IMAGE_STD, window)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: plain_backbone(num_heads=4),
        lambda: plain_backbone(act_layer=torch.nn.ReLU),
        lambda: plain_backbone(window=16),
        lambda: plain_backbone(mean=(0.5, 0.5, 0.5)),
    ],
    ids=["heads", "activation", "window", "mean"],
)
def test_a_setting_that_no_weight_shows_changes_the_key(changed: Callable[[], Backbone]):
    plain, other = plain_backbone(), changed()
    weights = plain.vit.state_dict(), other.vit.state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0].keys() | weights[1].keys())
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert not torch.equal(plain.features(images), other.features(images))
    assert plain.fingerprint() != other.fingerprint()
    assert not torch.equal(cached_features(plain, images, "")[:], cached_features(other, images, "")[:])


def test_precision_compilation_version_and_device_change_the_key(monkeypatch):
    keys = [plain_backbone().fingerprint()]
    for precision, compiled in (("bf16", False), ("fp32", True)):
        backbone = plain_backbone()
        backbone.prepare(precision, compiled)
        keys.append(backbone.fingerprint())
    monkeypatch.setattr(timm, "__version__", "0.0.1")
    keys.append(plain_backbone().fingerprint())
    monkeypatch.setattr(Backbone, "device", torch.device("cuda"))
    keys.append(plain_backbone().fingerprint())
    assert len(set(keys)) == len(keys)


def test_the_same_backbone_has_the_same_key():
    assert plain_backbone().fingerprint() == plain_backbone().fingerprint()


def written(folder: Path, images: list[np.ndarray]) -> LazyRows:
    """Images as files 0.bmp, 1.bmp, ... that were all changed at the same time."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.bmp")
        os.utime(folder / f"{number}.bmp", ns=(10**18, 10**18))
    return LazyRows(tuple(sorted(folder.iterdir())), stored_rgb, Squaring(16))


@given(seeds=st.lists(st.integers(0, 3), min_size=1, max_size=3), others=st.lists(st.integers(0, 3), max_size=3))
def test_folders_share_a_key_exactly_when_their_images_are_the_same(tmp_path_factory, seeds, others):
    """Names, sizes and times are the same in both."""
    folder = tmp_path_factory.mktemp("folders")
    first, second = (
        written(folder / name, [np.full((16, 16, 3), 60 * seed, np.uint8) for seed in chosen])
        for name, chosen in (("first", seeds), ("second", others))
    )
    assert (first.fingerprint() == second.fingerprint()) == (seeds == others)


def test_folders_with_the_same_names_sizes_and_times_do_not_share_features(tmp_path, monkeypatch):
    """Relative paths of two working folders are the same, and so were their keys when they left out the content."""
    found = []
    for name, level in (("one", 0), ("two", 255)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        images = written(Path("images"), [np.full((16, 16, 3), level, np.uint8)])
        found.append(cached_features(plain_backbone(), images, "")[:])
    assert not torch.equal(*found)


def test_a_file_that_is_replaced_changes_the_key(tmp_path):
    images = written(tmp_path / "images", [np.zeros((16, 16, 3), np.uint8)])
    before = images.fingerprint()
    Image.fromarray(np.ones((16, 16, 3), np.uint8)).save(images.files[0])
    assert images.fingerprint() != before


def cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(distance)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def axis_weights(old: int, new: int, offset: float) -> np.ndarray:
    """What each old position contributes to each new one along an axis, (new, old); the border is repeated."""
    weights = np.zeros((new, old))
    for place in range(new):
        centre = (place + 0.5) * old / (new + offset) - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[place, min(max(source, 0), old - 1)] += cubic(np.array(centre - source))
    return weights


def authors_positions(positions: torch.Tensor, rows: int, columns: int, offset: float) -> torch.Tensor:
    """The authors' formula, written out in double precision: (1, 1 + old^2, D) -> (1, 1 + rows * columns, D)."""
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[0, 1:].double().numpy().reshape(side, side, -1)
    new = np.einsum("ra,cb,abd->rcd", axis_weights(side, rows, offset), axis_weights(side, columns, offset), grid)
    return torch.cat([positions[0, :1].double(), torch.from_numpy(new).flatten(0, 1)])[None]


@pytest.mark.parametrize("offset", [0.0, 0.1])
@given(side=st.integers(2, 12), rows=st.integers(1, 24), columns=st.integers(1, 24))
def test_positions_are_resized_by_the_authors_formula(side, rows, columns, offset):
    positions = torch.randn(1, 1 + side**2, 3, generator=torch.Generator().manual_seed(side))
    found = resize_positions(positions, (rows, columns), offset)
    if (rows, columns) == (side, side):
        assert torch.equal(found, positions)
    else:
        wanted = authors_positions(positions, rows, columns, offset)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


@pytest.fixture
def dinov2(tmp_path, monkeypatch) -> str:
    """A narrow DINOv2, 37 positions a side, with random positions that vary from patch to patch."""
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    name = "vit_base_patch14_dinov2.lvd142m"
    rehearsal.write_weights(name, tmp_path / "weights")
    return name


def test_dinov2_at_322_pixels_has_the_features_that_the_authors_positions_give(dinov2):
    """Instead of resizing in between, build the network for 23 x 23 patches and give it the formula's positions."""
    images = np.random.default_rng(0).integers(0, 256, (2, 322, 322, 3), dtype=np.uint8)
    backbone = load_backbone(dinov2, positions="authors")
    assert backbone.vit.pos_embed.shape[1] == 1 + 37**2
    torch.nn.init.normal_(backbone.vit.pos_embed, generator=torch.Generator().manual_seed(0))
    sizes = {"embed_dim": rehearsal.WIDTH, "depth": 1, "num_heads": 2, "num_classes": 0}
    direct = timm.create_model(dinov2, img_size=322, dynamic_img_size=True, **sizes)
    wanted_positions = authors_positions(backbone.vit.pos_embed, 23, 23, 0.1).float()
    direct.load_state_dict(backbone.vit.state_dict() | {"pos_embed": wanted_positions})
    wanted = VitBackbone(direct, "direct", backbone.mean.flatten().tolist(), backbone.std.flatten().tolist())
    torch.testing.assert_close(backbone.features(images), wanted.features(images), rtol=0, atol=5e-3)
    timms = load_backbone(dinov2)
    timms.vit.load_state_dict(backbone.vit.state_dict())
    assert (timms.features(images) - wanted.features(images)).abs().max() > 0.1


def test_the_two_ways_of_resizing_agree_where_nothing_is_resized(dinov2):
    images = np.random.default_rng(0).integers(0, 256, (1, 518, 518, 3), dtype=np.uint8)
    timms, authors = load_backbone(dinov2), load_backbone(dinov2, positions="authors")
    assert torch.equal(timms.features(images), authors.features(images))
    assert timms.fingerprint() != authors.fingerprint()


def test_msn_resizes_without_the_offset(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    for name, offset in (("msn_vit_small_16", 0.0), ("ibot_vit_base_16", 0.1)):
        rehearsal.write_weights(name, tmp_path / "weights")
        assert vars(load_backbone(name, positions="authors"))["position_offset"] == offset
        assert vars(load_backbone(name))["position_offset"] is None


def test_a_way_of_resizing_that_is_none_is_refused():
    with pytest.raises(UserError, match="positions='theirs': must be one of timm, authors"):
        load_backbone("scenes", positions="theirs")


def test_the_settings_of_a_convolutional_network_change_the_key():
    def network(reflect: bool = True, taken: tuple[int, ...] = (1, 2), **settings: int) -> ConvBackbone:
        torch.manual_seed(0)
        levels = build_levels("resnet10t", list(taken), reflect)
        return ConvBackbone(levels, "levels", IMAGE_MEAN, IMAGE_STD, torch.zeros(sum(widths_of(levels))), **settings)

    others = ({"reflect": False}, {"taken": (0, 2)}, {"patch": 16}, {"context": 2})  # levels 0 and 1 are of one width
    keys = [network(**changes).fingerprint() for changes in ({}, *others)]
    assert len(set(keys)) == 5 and network().fingerprint() == keys[0]


def test_registers_have_no_authors_form(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    rehearsal.write_weights(name, tmp_path / "weights")
    with pytest.raises(UserError, match=r"reg4.*positions='timm'"):
        load_backbone(name, positions="authors")
