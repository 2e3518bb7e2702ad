"""Photographs from sources to the pack, and from the pack to a backbone."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cause_lite import datasets
from cause_lite.backbones import load_backbone
from cause_lite.backbones.pretrain import pretrain, pretrain_and_export
from cause_lite.backbones.pretrain_photos import PhotoPretraining, PhotosConfig
from cause_lite.backbones.views import Cut, PhotoViews, pooled, regions_of
from cause_lite.datasets import photos
from cause_lite.runtime.files import UserError

TINY = PhotosConfig(
    steps=2,
    cooldown=1,
    channels=(8, 8, 8, 8),
    views=((0, 64, 4), (2, 48, 5)),
    hidden=16,
    projection=8,
    regions=3,
    warmup=2,
)
CPU = torch.device("cpu")


def trained(pool: photos.Photos, config: PhotosConfig, folder: Path) -> PhotoPretraining:
    run = PhotoPretraining(pool, config, CPU)
    pretrain(run, folder)
    return run


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.fromarray(picture).save(held, kind)
    return held.getvalue()


@pytest.fixture
def packed(few_scenes, tmp_path, monkeypatch):
    """Twelve rendered pictures, packed in the cache."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path / "cache"))
    photos.packed_dir().parent.mkdir(parents=True, exist_ok=True)
    wide = [picture[:100] for picture in few_scenes.images[:12]]
    sources = {source.name: [] for source in photos.SOURCES} | {"clothes": map(encoded, wide)}
    photos.pack(sources, np.zeros(0, np.uint64), photos.packed_dir())
    return photos.load()


def test_the_pack_leaves_out_what_it_has_or_must_not_have(few_scenes, tmp_path):
    first, second, shown = few_scenes.images[:3]
    avoid = np.array([photos.difference_hash(photos.record(encoded(shown))[0])])
    contents = [encoded(first), encoded(first, "JPEG"), encoded(second), encoded(shown), encoded(first[:90]), b"torn"]
    photos.pack({"one": contents[:2], "two": contents[2:]}, avoid, tmp_path / "pack")
    assert (tmp_path / "pack" / "images.u8").stat().st_size == 2 * photos.SIDE**2 * 3
    sources = photos.read_json(tmp_path / "pack" / "index.json")["sources"]
    assert sources["one"] == {"kept": 1, "unusable": 0, "duplicates": 1, "overlaps": 0}
    assert sources["two"] == {"kept": 1, "unusable": 2, "duplicates": 0, "overlaps": 1}


def test_sources_are_found_and_checked(few_scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    (tmp_path / "photos" / "mine" / "in").mkdir(parents=True)
    for number, picture in enumerate(few_scenes.images[:5]):
        (tmp_path / "photos" / "mine" / "in" / f"{number}.png").write_bytes(encoded(picture))
    source = photos.Source("mine", "who/what", "0" * 40, r"in/\d\.png", 2, "CC0", 3, "0" * 64)
    assert [path.name for path in photos.files(source)] == ["0.png", "2.png", "4.png"]
    with pytest.raises(UserError, match="differ from the expected 3"):
        list(photos.contents(source))
    fetched = []
    monkeypatch.setattr(photos, "SOURCES", (source, dataclasses.replace(source, name="other")))
    monkeypatch.setattr(photos, "fetch_archive", lambda archive, root, say: fetched.append((archive.url, root)))
    photos.fetch(print)
    assert fetched == [(f"https://github.com/who/what/archive/{'0' * 40}.zip", tmp_path / "photos")]


def test_evaluation_sets_are_found_in_every_format_that_is_read(few_scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    files = ["MSRC/Images/1_1_s.bmp", "MSRC/Images/1_2_s.jpg", "CamVid/test/a.png"]
    for file, picture in zip([*files, "MSRC/Images/notes.txt"], few_scenes.images, strict=False):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / file, {"jpg": "JPEG", "png": "PNG"}.get(file[-3:], "BMP"))
    wanted = [photos.difference_hash(photos.record(encoded(few_scenes.images[number]))[0]) for number in (2, 0, 1)]
    found = photos.evaluation_hashes()
    assert len(found) == 3 and list(found[:2]) == wanted[:2]  # in the order of paths; the third went through a JPEG


def test_a_pack_without_a_source_is_named(packed, monkeypatch):
    more = dataclasses.replace(photos.SOURCES[0], name="later")
    monkeypatch.setattr(photos, "SOURCES", (*photos.SOURCES, more))
    with pytest.raises(UserError, match="lacks the photographs of later; remove it"):
        photos.load()


def test_a_pack_that_lies_there_is_only_reported(packed):
    said = []
    datasets.prepare("photos", said.append)
    assert "clothes: 12 photographs (CC0); left out: none" in said and "photos: 12 in" in said[-2]
    assert "no evaluation set was there" in said[-1]


def test_views_repeat_and_a_cut_of_the_whole_is_the_whole(packed):
    views = [PhotoViews(packed, 3, (0.2, 1.0), torch.Generator()).draw(5, 64, 4) for _ in range(2)]
    assert torch.equal(torch.cat(views[0][1]), torch.cat(views[1][1]))
    for cut in views[0][2]:
        assert (cut.box[:, :2].abs() + cut.box[:, 2:] <= 1 + 1e-6).all()
    pictures = views[0][0]
    whole = torch.tensor([[0.0, 0, 1, 1]]).repeat(len(pictures), 1)
    seen = Cut(whole, torch.tensor([False, True, False, True])).sample(pictures, photos.SIDE)
    seen[1::2] = seen[1::2].flip(3)
    assert torch.allclose(seen, pictures, atol=1e-4)


def test_each_photograph_is_seen_once_an_epoch(packed):
    views = PhotoViews(packed, 0, (0.2, 1.0), torch.Generator())
    orders = [torch.cat([views.numbers(step, 4) for step in range(start, start + 3)]) for start in (0, 3)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)
    assert not torch.equal(*orders)


def test_a_region_has_the_same_mean_in_both_views(packed):
    """A map of the colours themselves, read through two whole views, one mirrored."""
    pictures, _, _ = PhotoViews(packed, 0, (0.2, 1.0), torch.Generator()).draw(0, 64, 4)
    regions = regions_of(pictures, 3, torch.Generator().manual_seed(0))
    assert torch.equal(regions.sum(1), torch.ones(4, 20, 20))
    whole = torch.tensor([[0.0, 0, 1, 1]]).repeat(4, 1)
    cuts = [Cut(whole, torch.full((4,), mirrored)) for mirrored in (False, True)]
    level = torch.cat([cut.sample(pictures, 8) for cut in cuts])
    rows, photograph = pooled([level], regions, cuts)
    assert torch.allclose(*rows.chunk(2), atol=1e-4)
    assert len(photograph) == len(rows) // 2 and set(photograph.tolist()) <= set(range(4))


def test_views_change_with_the_step_and_a_branch_keeps_them(packed):
    longer = dataclasses.replace(TINY, steps=3, cooldown=3)
    assert [longer.views_at(step) for step in range(5)] == [(64, 4)] * 2 + [(48, 5)] * 3
    assert [TINY.views_at(step) for step in range(4)] == [(64, 4)] * 4
    run = PhotoPretraining(packed, longer, CPU)
    for count, side in ((4, 64), (4, 64), (5, 48), (5, 48)):
        _, views, _ = run.views.draw(run.step, *longer.views_at(run.step))
        assert [view.shape for view in views] == [(count, 3, side, side)] * 2
        run.advance()


def test_a_run_resumes_goes_on_and_exports_a_backbone_that_loads(packed, few_scenes, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    trained(packed, dataclasses.replace(TINY, cooldown=0), stopped)
    for folder in (stopped, whole):
        pretrain_and_export(TINY, folder, "cpu")
    assert (stopped / "network.safetensors").read_bytes() == (whole / "network.safetensors").read_bytes()
    longer = dataclasses.replace(TINY, steps=4)
    run = trained(packed, longer, whole)
    assert (run.step, len(run.curve)) == (5, 5)
    with pytest.raises(UserError, match="has gone on to step 4"):
        trained(packed, dataclasses.replace(TINY, steps=3), whole)
    with pytest.raises(UserError, match=r"of another recipe \(views was .*48.* and is"):
        trained(packed, dataclasses.replace(longer, steps=5, views=((0, 64, 4),)), whole)
    backbone = load_backbone(str(whole))
    features = backbone.features(few_scenes.images[:2])
    assert features.shape == (2, 256, backbone.dim) and backbone.dim == 24
    assert "No label was read" in (whole / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"temperature": 0.5}, {"regions": 2}, {"scale": (0.3, 1.0)}, {"channels": (8, 8, 8, 16)}]
)
def test_a_run_is_not_taken_for_one_of_another_recipe(packed, tmp_path, changes):
    trained(packed, TINY, tmp_path)
    with pytest.raises(UserError, match=f"of another recipe .{next(iter(changes))} was "):
        trained(packed, dataclasses.replace(TINY, **changes), tmp_path)


def test_a_branch_is_not_taken_for_one_of_another_length(packed, tmp_path):
    trained(packed, dataclasses.replace(TINY, cooldown=3), tmp_path)
    with pytest.raises(UserError, match="cooldown was 3 and is 1"):
        trained(packed, dataclasses.replace(TINY, cooldown=1), tmp_path)


def test_a_state_that_does_not_tell_its_recipe_is_refused(packed, tmp_path):
    trained(packed, dataclasses.replace(TINY, cooldown=0), tmp_path)
    state = torch.load(tmp_path / "pretrain.pt", weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "recipe"}, tmp_path / "pretrain.pt")
    with pytest.raises(UserError, match="seed was not recorded and is 0"):
        trained(packed, dataclasses.replace(TINY, steps=3), tmp_path)


def test_a_run_tells_from_which_step_on_there_were_other_photographs(packed, tmp_path):
    trained(packed, dataclasses.replace(TINY, cooldown=0), tmp_path)
    fewer = photos.Photos(packed.images[:8], packed.aspects[:8], packed.about)
    run = trained(fewer, dataclasses.replace(TINY, steps=3, cooldown=0), tmp_path)
    assert run.pools == [(0, len(packed.images)), (TINY.steps, 8)]


@pytest.mark.parametrize("name, content", [("network.json", b"{}"), ("network.safetensors", b"torn")])
def test_a_damaged_network_is_named(packed, tmp_path, name, content):
    pretrain_and_export(TINY, tmp_path, "cpu")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_backbone(str(tmp_path))
