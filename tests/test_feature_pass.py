"""The pass of images through a backbone: the same features read ahead, fused, compiled, stored or computed again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config, random_backbone
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cause_lite.backbones import cached_features, feature_choice
from cause_lite.backbones.feature_choice import Rates, stored_images
from cause_lite.backbones.feature_pass import Computed, FeaturePass, largest_batch, on_host, read_ahead
from cause_lite.backbones.feature_store import PatchStore, images_within, module_outputs
from cause_lite.backbones.feature_use import readings_of
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.runtime.files import UserError
from cause_lite.steps import build_head
from cause_lite.train import fit

CPU = torch.device("cpu")
opened: Counter[Path] = Counter()


def read(path: Path) -> Image.Image:
    opened[path] += 1
    return Image.open(path).convert("RGB")


@pytest.fixture
def photographs(tmp_path) -> LazyRows:
    """Five crops of each of four small photographs."""
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    rng = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(rng.integers(256, size=(90, 70, 3), dtype=np.uint8)).save(path)
    return LazyRows(tuple(paths), read, Squaring(32, "five"))


# The pass.


@pytest.mark.parametrize("workers", [0, 2])
def test_images_read_ahead_are_those_asked_for_in_order(photographs, workers):
    batches = [torch.tensor([3, 0, 19]), torch.tensor([7]), torch.tensor([8, 9])]
    for numbers, images in zip(batches, read_ahead(photographs, batches, workers, CPU), strict=True):
        assert np.array_equal(images.numpy(), photographs[numbers.numpy()])


def test_a_photograph_is_decoded_once_for_all_its_crops(photographs):
    each = [photographs[number] for number in range(20)]
    opened.clear()
    together = photographs[:]
    assert set(opened.values()) == {1} and len(opened) == 4
    assert np.array_equal(together, np.stack(each))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_gives_the_backbones_features(photographs, workers, small_backbone):
    source = FeaturePass(small_backbone, photographs, workers)
    batches = torch.arange(20).split(6)
    found = torch.cat(list(on_host(source.ahead(batches))))
    wanted = torch.cat([small_backbone.features(photographs[numbers.numpy()]) for numbers in batches])
    assert torch.equal(found, wanted) and torch.equal(source(batches[1]), wanted[6:12])


def test_fused_attention_equals_the_plain_one(few_scenes):
    """To five digits in single precision, where features are of size 1."""
    backbone, images = random_backbone(), torch.from_numpy(few_scenes.images[:4]).permute(0, 3, 1, 2) / 255
    assert backbone.vit.blocks[0].attn.fused_attn
    fused = backbone(images)
    for block in backbone.vit.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(backbone(images), fused, rtol=1e-5, atol=1e-5)


def test_weights_with_channels_last_give_the_same_features(few_scenes):
    """As they lie on a GPU; to two units of the last place of half precision."""
    backbone = random_backbone()
    wanted, fingerprint = backbone.features(few_scenes.images[:4]), backbone.fingerprint()
    backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(backbone.features(few_scenes.images[:4]), wanted, rtol=2e-3, atol=2e-3)
    assert backbone.fingerprint() == fingerprint


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling takes a compiler")
def test_a_compiled_pass_equals_the_eager_one(few_scenes):
    """In double precision, before half precision rounds, and in batches of two sizes."""
    eager, compiled = random_backbone(), random_backbone()
    eager.prepare("fp64")
    compiled.prepare("fp64", compiled=True)
    batches = torch.arange(7).split(4)
    found, wanted = (torch.cat(list(FeaturePass(b, few_scenes.images).ahead(batches))) for b in (compiled, eager))
    assert (found != wanted).float().mean() < 1e-6


@given(st.floats(1, 1e12), st.floats(1, 1e9), st.sampled_from([1, 32, 128]))
def test_a_batch_is_the_largest_power_of_two_that_fits(free, each, most):
    batch = largest_batch(free, each, most)
    assert 1 <= batch <= most and most % batch == 0
    assert batch == 1 or batch * each <= free / 2
    assert batch == most or 2 * batch * each > free / 2


# Stored or computed again.


@pytest.mark.parametrize("head", ["mlp", "tr"])
def test_a_fit_is_the_same_with_features_stored_or_computed_again(head, few_scenes, tmp_path, monkeypatch):
    """Stored, in part, and not at all; all outputs of the head are stored.

    To nine digits, in double precision: last bits change with the number of images that are computed at once.
    """
    settings = {"head.kind": head, "head.reduced_dim": 4, "optimisation.precision": "fp64"}
    states, half, config = [], 12 * 256 * 32 * 2 / 1e9, quick_config(settings)
    for number, (choice, budget) in enumerate([("store", 50), ("store", half), ("recompute", 50)]):
        monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / str(number)))
        monkeypatch.setenv("CAUSE_FEATURES", choice)
        monkeypatch.setenv("CAUSE_FEATURE_BUDGET", str(budget))
        segmenter = fit(config, few_scenes, random_backbone()).segmenter
        states.append(segmenter.state_dict())
        kept = list((tmp_path / str(number) / "features").glob("*.npy"))
        assert [len(np.load(path)) for path in kept] == [[24], [12], []][number]
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("choice", ["store", "recompute"])
def test_a_fit_computes_no_batch_of_an_epoch_twice(choice, few_scenes, tmp_path, monkeypatch):
    """Stored: each image once in all. Computed again: once a reading; outputs of the head are kept."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("CAUSE_FEATURES", choice)
    backbone, config, passed = random_backbone(), quick_config({"head.kind": "mlp"}), []
    features = backbone.features
    monkeypatch.setattr(backbone, "features", lambda images: passed.append(len(images)) or features(images))
    fit(config, few_scenes, backbone)
    assert readings_of(config) == 4
    one_for_the_width = 1 if choice == "recompute" else 0
    assert sum(passed) == 24 * (1 if choice == "store" else 4) + one_for_the_width


def test_the_released_label_flow_reads_features_in_each_epoch_of_step_3():
    assert readings_of(quick_config({"probe.label_flow": "as_released", "probe.epochs": 7})) == 10


@pytest.mark.parametrize("kept", [0, 60, 200])
def test_a_damaged_file_of_vectors_is_made_again(tmp_path, kept):
    vectors = torch.arange(9 * 4 * 3, dtype=torch.float16).view(9, 4, 3)
    for _ in range(2):
        store = PatchStore(tmp_path / "v", (9, 4, 3), torch.float16, vectors.__getitem__, "Vectors", 9)
        assert torch.equal(store[:], vectors)
        (file,) = tmp_path.glob("v-9.npy")
        file.write_bytes(file.read_bytes()[:kept])


@given(st.integers(0, 9), st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=5), max_size=4))
def test_a_stream_is_what_is_read_batch_by_batch(tmp_path_factory, stored, batches):
    vectors = torch.arange(9 * 4 * 3, dtype=torch.float16).view(9, 4, 3)
    folder = tmp_path_factory.mktemp("store")
    store = PatchStore(folder / "v", (9, 4, 3), torch.float16, vectors.__getitem__, "Vectors", stored)
    asked = [torch.tensor(batch) for batch in batches]
    found = list(store.stream(asked, CPU))
    assert len(found) == len(asked)
    for numbers, (same, streamed) in zip(asked, found, strict=True):
        assert torch.equal(same, numbers) and torch.equal(streamed, vectors[numbers].float())


def test_outputs_take_what_features_left_of_the_disk(tmp_path, monkeypatch):
    """A budget of five images' features a file, and outputs that are as wide."""
    monkeypatch.setenv("CAUSE_FEATURE_BUDGET", str(5 * 16 * 8 * 2 / 1e9))
    vectors, head = torch.randn(30, 16, 8).half(), build_head("mlp", 8, 8, 16, torch.eye(8))
    found = {}
    for stored in (5, 0):
        folder = tmp_path / str(stored)
        store = PatchStore(folder / "v", (30, 16, 8), torch.float16, vectors.__getitem__, "Vectors", stored)
        outputs = module_outputs(head, store, folder, torch.float16)
        found[stored] = outputs.stored
        torch.testing.assert_close(outputs[:].float(), head.eval()(vectors.float()), rtol=1e-3, atol=1e-3)
    assert found == {5: 5, 0: 10}


def test_features_leave_room_for_outputs(few_scenes, tmp_path, monkeypatch):
    """Of a budget of 20 images' features a file, outputs of 1.5 times the size leave that of four images."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("CAUSE_FEATURE_BUDGET", str(20.001 * 256 * 32 * 2 / 1e9))
    images = few_scenes.images
    stores = [cached_features(random_backbone(), images, "Features", 3, size) for size in (0, 96, 1000)]
    assert [store.stored for store in stores] == [20, 4, 0]


# The choice.

rates = st.floats(0.1, 1e5)


@given(rates, rates, rates, st.integers(1, 1000), st.integers(1, 10))
def test_hours_count_each_image_written_read_and_computed(computed, written, read, images, readings):
    measured = Rates(computed, written, read)
    assert measured.hours(images, 0, readings) == pytest.approx(readings * images / computed / 3600)
    whole = images * (1 / computed + 1 / written + readings / read) / 3600
    assert measured.hours(images, images, readings) == pytest.approx(whole)


def choose(monkeypatch, capsys, choice: str, measured: Rates, readings: int | None = 4) -> tuple[int, str]:
    monkeypatch.setenv("CAUSE_FEATURES", choice)
    monkeypatch.setattr(feature_choice, "SMALL", 0)
    monkeypatch.setattr(feature_choice, "measured_rates", lambda *rest: measured)
    count = stored_images((10, 4, 3), 8, Computed(torch.zeros), Path(), "Features", readings)
    return count, " ".join(capsys.readouterr().err.split())


SLOW_DISK, FAST_DISK = Rates(100, 10, 10), Rates(10, 1000, 1000)


def test_the_faster_way_is_taken_and_said(monkeypatch, capsys):
    count, said = choose(monkeypatch, capsys, "auto", FAST_DISK)
    assert count == 8 and "computed at 10 images a second, written at 1,000, read at 1,000" in said
    assert "8 of 10 stored" in said and "CAUSE_FEATURES=recompute overrules" in said
    count, said = choose(monkeypatch, capsys, "auto", SLOW_DISK)
    assert count == 0 and "computed again (CAUSE_FEATURES=store overrules)" in said


def test_the_choice_can_be_overruled(monkeypatch, capsys):
    assert choose(monkeypatch, capsys, "store", SLOW_DISK) == (8, "")
    assert choose(monkeypatch, capsys, "recompute", FAST_DISK) == (0, "")
    assert choose(monkeypatch, capsys, "auto", SLOW_DISK, readings=None) == (8, "")
    with pytest.raises(UserError, match="CAUSE_FEATURES='perhaps': must be one of auto, store, recompute"):
        choose(monkeypatch, capsys, "perhaps", SLOW_DISK)


def test_few_features_are_stored_without_being_measured(monkeypatch):
    monkeypatch.setattr(feature_choice, "measured_rates", lambda *rest: pytest.fail("measured"))
    assert stored_images((10, 4, 3), 8, Computed(torch.zeros), Path(), "Features", 4) == 8


def test_rates_are_measured_and_leave_nothing(tmp_path, small_backbone, few_scenes):
    source = FeaturePass(small_backbone, few_scenes.images)
    measured = feature_choice.measured_rates(source, len(few_scenes.images), tmp_path / "features")
    assert all(rate > 0 for rate in (measured.computed, measured.written, measured.read))
    assert not list((tmp_path / "features").iterdir())


@given(st.floats(0, 1e6), st.integers(1, 50))
def test_as_many_images_are_stored_as_fit(budget, images):
    count = images_within(budget, (images, 4, 3), torch.float16)
    assert 0 <= count <= images and count * 24 <= budget
    assert count == images or (count + 1) * 24 > budget


def test_stored_features_are_read_from_their_file(few_scenes, tmp_path, monkeypatch):
    """A second reading computes nothing, whatever is asked for."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    backbone = random_backbone()
    first = cached_features(backbone, few_scenes.images, "Features", readings=3)[:]
    monkeypatch.setattr(backbone, "features", lambda images: pytest.fail("computed again"))
    assert torch.equal(cached_features(backbone, few_scenes.images, "Features", readings=3)[:], first)
