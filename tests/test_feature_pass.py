"""The pass of images through a backbone: the same features read ahead, fused, compiled, stored or computed again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import quick_config, random_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cause_lite.backbones import cached_features, feature_store
from cause_lite.backbones.feature_pass import FeaturePass, largest_batch, on_host, read_ahead
from cause_lite.backbones.feature_store import PatchStore, images_within, make_room, module_outputs, take_into_use
from cause_lite.datasets.images import LazyRows, Squaring
from cause_lite.runtime.files import cache_dir
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
    states, config = [], quick_config(settings)
    half, outputs_alone = 12 * 256 * 32 * 2 / 1e9, 24 * 256 * 4 * 8 / 2 * 1.001 / 1e9
    for number, budget in enumerate([50, half, outputs_alone]):
        monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / str(number)))
        monkeypatch.setenv("CAUSE_FEATURE_BUDGET", str(budget))
        segmenter = fit(config, few_scenes, random_backbone()).segmenter
        states.append(segmenter.state_dict())
        kept = list((tmp_path / str(number) / "features").glob("*.npy"))
        assert [len(np.load(path)) for path in kept] == [[24], [12], []][number]
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stored", [True, False])
def test_a_fit_computes_no_batch_of_an_epoch_twice(stored, few_scenes, tmp_path, monkeypatch):
    """Stored: each image once in all. Computed again: once a reading; outputs of the head are kept."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    outputs_alone = 24 * 256 * 16 * 4 / 2 * 1.001 / 1e9
    monkeypatch.setenv("CAUSE_FEATURE_BUDGET", str(50 if stored else outputs_alone))
    backbone, config, passed = random_backbone(), quick_config({"head.kind": "mlp"}), []
    features = backbone.features
    monkeypatch.setattr(backbone, "features", lambda images: passed.append(len(images)) or features(images))
    fit(config, few_scenes, backbone)
    readings, one_for_the_width = config.clusterbook.epochs + config.head.epochs + 1, 1
    assert sum(passed) == (24 if stored else 24 * readings + one_for_the_width)


@pytest.mark.parametrize("kept", [0, 60, 200])
def test_a_damaged_file_of_vectors_is_made_again(tmp_path, kept):
    vectors = torch.arange(9 * 4 * 3, dtype=torch.float16).view(9, 4, 3)
    for _ in range(2):
        store = PatchStore(tmp_path / "v", (9, 4, 3), torch.float16, vectors.__getitem__, "Vectors", 9)
        assert torch.equal(store[:], vectors)
        (file,) = tmp_path.glob("v.npy")
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
    monkeypatch.setenv("CAUSE_FEATURE_BUDGET", str(20.001 * 256 * 32 * 2 / 1e9))
    images = few_scenes.images
    for size, stored in ((0, 20), (96, 4), (1000, 0)):
        monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / str(size)))
        assert cached_features(random_backbone(), images, "Features", size).stored == stored


@given(st.floats(0, 1e6), st.integers(1, 50))
def test_as_many_images_are_stored_as_fit(budget, images):
    count = images_within(budget, (images, 4, 3), torch.float16)
    assert 0 <= count <= images and count * 24 <= budget
    assert count == images or (count + 1) * 24 > budget


def test_stored_features_are_read_from_their_file(few_scenes, tmp_path, monkeypatch):
    """A second reading computes nothing."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    backbone = random_backbone()
    first = cached_features(backbone, few_scenes.images, "Features")[:]
    monkeypatch.setattr(backbone, "features", lambda images: pytest.fail("computed again"))
    assert torch.equal(cached_features(backbone, few_scenes.images, "Features")[:], first)


# The disk fills.


def free_disk(patched: pytest.MonkeyPatch, free: float) -> None:
    patched.setattr(feature_store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=6))
def test_one_file_serves_whatever_the_disk_has_free(tmp_path_factory, few_scenes, free):
    """It holds at least half of what fits, never less than before, and is written again only for twice as much."""
    one, images, backbone, held, written = 256 * 32 * 2, few_scenes.images, random_backbone(), 0, set()
    wanted = torch.arange(24, dtype=torch.float16)[:, None, None].expand(24, 256, 32)
    known = {image.tobytes(): vectors for image, vectors in zip(images, wanted, strict=True)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backbone, "features", lambda batch: torch.stack([known[image.tobytes()] for image in batch]))
        patched.setenv("CAUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        for images_free in free:
            free_disk(patched, images_free * one)
            store, fits = cached_features(backbone, images, "Features"), min(24, images_free // 2)
            assert torch.equal(store[:], wanted)
            assert store.stored >= held and store.stored >= min(fits, fits // 2 + 1)
            assert store.stored == held or store.stored == fits >= min(24, 2 * held)
            held = store.stored
            written |= {path.stat().st_ino for path in cache_dir().glob("features/*.npy")}
            assert len(list(cache_dir().glob("features/*"))) == bool(held)
    assert len(written) <= 1 + np.log2(24)


def other_features(folder: Path, sizes: list[int]) -> list[Path]:
    """Files of other features, the least recently used first."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.npy" for number in range(len(sizes))]
    for age, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(bytes(size))
        os.utime(path, (age, age))
    return paths


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=8), st.integers(1, 40), st.integers(0, 300))
def test_what_was_used_least_recently_makes_room_and_no_more(tmp_path_factory, files, needed, free):
    """A budget of 40 bytes a file, so that 80 are kept; the disk grows as files go."""
    folder = tmp_path_factory.mktemp("cache") / "features"
    paths = other_features(folder, [size for size, _ in files])
    held = [take_into_use(path) for path, (_, used) in zip(paths, files, strict=True) if used]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))

    def taken() -> int:
        return sum(path.stat().st_size for path in folder.iterdir())

    before = taken()

    def fits(more: int = 0) -> bool:
        return taken() + more + needed <= 80 and free + before - taken() - more >= 2 * needed

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAUSE_FEATURE_BUDGET", str(40 / 1e9))
        patched.setattr(
            feature_store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free + before - taken())
        )
        make_room(folder, needed)
    gone = [path for path in paths if not path.exists()]
    left = [path for path, (_, used) in zip(paths, files, strict=True) if not used and path.exists()]
    assert all(path.exists() for path, (_, used) in zip(paths, files, strict=True) if used)
    assert fits() or not left
    assert not gone or not left or paths.index(gone[-1]) < paths.index(left[0])
    assert not gone or not fits(files[paths.index(gone[-1])][0])
    for file in held:
        file.close()


def test_features_that_another_process_reads_stay(tmp_path, few_scenes, monkeypatch):
    """Until it ends; those of this process stay while their store is there."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    store = cached_features(random_backbone(), few_scenes.images, "Features")
    (own,), (read, old) = (tmp_path / "features").glob("*.npy"), other_features(tmp_path / "features" / "x", [9, 9])
    read, old = read.rename(own.with_name("read.npy")), old.rename(own.with_name("old.npy"))
    hold = "import sys, pathlib\nfrom cause_lite.backbones.feature_store import take_into_use\n"
    hold += "file = take_into_use(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    reader = subprocess.Popen(
        [sys.executable, "-c", hold, str(read)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline().strip() == "held"
    free_disk(monkeypatch, 0)
    make_room(tmp_path / "features", 1)
    assert read.exists() and own.exists() and not old.exists()
    reader.kill()
    reader.wait()
    del store
    make_room(tmp_path / "features", 1)
    assert not read.exists() and not own.exists()
