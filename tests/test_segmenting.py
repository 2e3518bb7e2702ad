"""From files and folders to label maps: the aspect is kept, names never collide, a bad file stops nothing."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_commands import call
from user_inputs import classes, photograph, with_orientation

import cause_lite
from cause_lite.backbones.tiling import by_strips, largest, margin, plan_tiles
from cause_lite.datasets import load_split, scenes
from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.folder_survey import survey
from cause_lite.datasets.picture_files import is_output
from cause_lite.datasets.tiff import read_georeference
from cause_lite.lab.colours import BLEND, palette
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fit_to, load_training
from cause_lite.lab.segmenting import Segmenting, outputs_of, plan_jobs, segment_files
from cause_lite.probe import ClusterProbe
from cause_lite.runtime.files import UserError

tifffile = pytest.importorskip("tifffile")

MODEL = "scenes"  # the segmenter that ships


@pytest.fixture(scope="module")
def shipped():
    """The segmenter that ships."""
    return cause_lite.load("scenes")


@pytest.fixture(scope="module")
def views():
    return [scenes.render(0, "val", number).image for number in range(8)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- tiles


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(128, 8), (320, 8), (56, 14)]), st.floats(0.3, 3))
def test_tiles_cover_every_image_at_its_own_aspect(height, width, sizes, scale):
    size, patch = sizes
    tiling = plan_tiles((height, width), size, patch, scale)
    down, across = tiling.grid
    seen = np.zeros((down, across), int)
    for y, x in tiling.places:
        assert y % patch == x % patch == 0
        seen[y // patch : (y + size) // patch, x // patch : (x + size) // patch] += 1
    assert seen.min() >= 1 and seen.shape == (max(tiling.inner[0], size) // patch, max(tiling.inner[1], size) // patch)
    assert max(tiling.inner) <= 64 * size + patch
    if max(height, width) * scale <= 64 * min(height, width):
        assert abs(min(tiling.inner) - size * scale) <= max(patch, patch - size * scale)
        assert abs(tiling.inner[0] / height - tiling.inner[1] / width) <= patch / min(height, width)


def test_a_square_is_one_tile_as_in_training(shipped, views):
    tiling = plan_tiles((128, 128), 128, 8)
    assert tiling.places == [(0, 0)] and tiling.inner == (128, 128)
    tensor = torch.from_numpy(views[0]).permute(2, 0, 1)[None].float() / 255
    maps = shipped.segment_features(shipped.backbone(tensor), shipped.backbone(tensor.flip(3)))
    wanted = shipped.similarities(maps, (128, 128)).argmax(1)[0].numpy()
    assert np.array_equal(shipped.segment(views[0]), wanted)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_scenes_side_by_side_keep_the_clusters_that_they_get_alone(shipped, views, count, axis):
    alone = np.concatenate([shipped.segment(view) for view in views[:count]], axis)
    assert (shipped.segment(np.concatenate(views[:count], axis)) == alone).mean() > 0.95


def test_a_larger_scale_looks_closer(shipped, views):
    """At twice the scale, a quarter of an image is seen as if it were alone."""
    alone = shipped.segment(views[1][:64, :64])
    closer = shipped.segment(views[1], scale=2.0)
    assert closer.shape == (128, 128) and (closer[:64, :64] == alone).mean() > 0.9
    assert (shipped.segment(views[1]) != closer).mean() > 0.02


@pytest.mark.parametrize("shape", [(1, 1), (3, 20_000), (500, 2), (129, 128)])
def test_every_shape_has_a_label_for_each_pixel(shipped, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    labels = shipped.segment(image)
    assert labels.shape == shape and labels.dtype == np.uint8 and labels.max() < 16


def test_strips_are_the_whole(shipped):
    maps = torch.randn(1, 90, 5, 7)
    whole = shipped.similarities(maps, (33, 41))
    for size in ((33, 41), (41, 33)):
        wanted = whole if size == (33, 41) else shipped.similarities(maps, size)
        assert torch.equal(by_strips(maps, size, shipped.similarities, largest), wanted.argmax(1)[0].int())
        first, second = wanted.topk(2, dim=1).values[0]
        assert torch.allclose(by_strips(maps, size, shipped.similarities, margin), first - second, atol=1e-5)


# ---------------------------------------------------------------- what `segment` accepts


def test_every_kind_of_image_means_the_same(shipped, tmp_path):
    image = photograph()
    image.save(tmp_path / "a.png")
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    wanted = shipped.segment(pixels)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image, pixels / 255, tensor, tensor.float() / 255):
        assert np.array_equal(shipped.segment(source), wanted)
    batch = shipped.segment(torch.stack([tensor, tensor.flip(2)]))
    assert batch.shape == (2, 100, 128) and np.array_equal(batch[0], wanted)
    grey = shipped.segment(image.convert("L"))
    assert np.array_equal(grey, shipped.segment(np.asarray(image.convert("L"))))
    assert shipped.segment(np.dstack([pixels, np.full((100, 128), 255, np.uint8)])).tolist() == wanted.tolist()
    with pytest.raises(UserError, match=r"image: expected a tensor \(3, H, W\), not \(100, 128, 3\)"):
        shipped.segment(tensor.permute(1, 2, 0))


@pytest.mark.parametrize("tag", [3, 6, 8])
def test_a_phones_photograph_is_labelled_as_it_is_seen(shipped, tmp_path, tag):
    path = with_orientation(photograph(), tag, tmp_path / "a.png")
    assert np.array_equal(shipped.segment(path), shipped.segment(photograph()))


def test_transparent_pixels_are_ignored(shipped):
    pixels = np.dstack([np.asarray(photograph()), np.full((100, 128), 255, np.uint8)])
    pixels[:, :40, 3] = 0
    labels = shipped.segment(pixels)
    assert (labels[:, :40] == 255).all() and labels[:, 40:].max() < 16


def with_clusters(segmenter, count: int):
    """The same segmenter with other clusters."""
    centres = segmenter.cluster_probe
    segmenter.cluster_probe = ClusterProbe(count, centres.centres.shape[1])
    return centres


@pytest.mark.parametrize("count, kind", [(255, np.uint8), (256, np.uint16), (2000, np.uint16)])
def test_many_clusters_take_sixteen_bits(shipped, count, kind):
    torch.manual_seed(0)
    held = with_clusters(shipped, count)
    try:
        labels = shipped.segment(np.dstack([np.asarray(photograph()), np.eye(100, 128, dtype=np.uint8) * 255]))
        assert labels.dtype == kind and labels[0, 1] == np.iinfo(kind).max and labels[0, 0] < count
        nearest = shipped.segment(photograph())
        pixels = shipped.similarities(shipped.maps(np.asarray(photograph())), (100, 128))
        assert np.array_equal(nearest, pixels.argmax(1)[0].numpy())
    finally:
        shipped.cluster_probe = held


def test_more_clusters_than_sixteen_bits_hold_are_refused(shipped):
    held = with_clusters(shipped, 65_536)
    try:
        with pytest.raises(UserError, match="65,536 clusters do not fit a 16-bit label map"):
            shipped.segment(photograph())
    finally:
        shipped.cluster_probe = held


# ---------------------------------------------------------------- files and folders


@pytest.fixture
def outing(tmp_path):
    """Photographs of two days by the same names, and some things beside them."""
    folder = tmp_path / "outing"
    for number, name in enumerate(["day1/img.jpg", "day2/img.jpg", "day2/img.png", "day2/deep/x.y.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(number, 60, 90).save(folder / name)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_bytes(b"none")
    return folder


def targets(paths) -> list[str]:
    return [job.target for job in plan_jobs(paths)[0]]


def test_names_never_collide(outing, tmp_path):
    assert targets([outing]) == ["day1/img", "day2/deep/x.y", "day2/img.jpg", "day2/img.png"]
    assert targets([outing / "day1/img.jpg", outing / "day2/img.jpg"]) == ["day1/img", "day2/img"]
    assert targets([outing / "day2/img.jpg", outing / "day2/img.png"]) == ["img.jpg", "img.png"]
    assert targets([outing / "day1/img.jpg", outing / "day1/img.jpg"]) == ["img"]
    assert targets([outing / "day1", outing / "day2/img.jpg"]) == ["day1/img", "img"]
    (outing / "day2" / "IMG.jpg").write_bytes((outing / "day2" / "img.jpg").read_bytes())
    assert len({name.casefold() for name in targets([outing])}) == 5
    other = tmp_path / "other" / "day1"
    other.mkdir(parents=True)
    photograph().save(other / "img.jpg")
    with pytest.raises(UserError, match=r"would be written to the same day1/img\.labels\.png"):
        plan_jobs([outing / "day1", other])
    assert "1 skipped: hidden" in " ".join(plan_jobs([outing])[1])


def test_a_folder_keeps_its_paths_and_one_bad_file_does_not_stop_the_rest(
    outing,
    tmp_path,
    monkeypatch,
    capsys,
):
    whole = (outing / "day1" / "img.jpg").read_bytes()
    (outing / "day1" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    photograph().save(outing / f"{'n' * 240}.png")
    out = tmp_path / "out"
    words = ["segment", outing, "--model", MODEL, "--out", out, "--confidence"]
    status, printed = call(monkeypatch, capsys, *words)
    printed = " ".join(printed.split())
    assert status == 1 and "Traceback" not in printed
    assert "2 of 6 images could not be segmented" in printed and "cut.jpg: is damaged" in printed
    assert "its name is too long for the names of its outputs" in printed
    assert "1 skipped: .txt is no image format" in printed and "1 skipped: hidden (.hidden.png)" in printed
    stems = ["day1/img", "day2/deep/x.y", "day2/img.jpg", "day2/img.png"]
    ends = ("labels", "overlay", "confidence")
    assert names(out) == sorted([f"{stem}.{end}.png" for stem in stems for end in ends] + ["legend.csv"])
    for stem in stems:
        with Image.open(out / f"{stem}.labels.png") as labels, Image.open(out / f"{stem}.overlay.png") as overlay:
            assert labels.size == overlay.size == (90, 60) and labels.mode == "L"


def test_names_in_two_forms_of_unicode_keep_two_outputs(tmp_path):
    for form in ("NFC", "NFD"):
        photograph().save(tmp_path / f"{unicodedata.normalize(form, 'é')}.png")
    targets = [unicodedata.normalize("NFC", job.target) for job in plan_jobs([tmp_path])[0]]
    assert len(set(targets)) == len(targets)


def test_nothing_is_done_before_names_are_settled(outing, tmp_path):
    other = tmp_path / "other" / "day1"
    other.mkdir(parents=True)
    photograph().save(other / "img.jpg")
    with pytest.raises(UserError, match="the same"):
        list(segment_files([outing / "day1", other], MODEL, tmp_path / "out", "cpu"))
    with pytest.raises(UserError, match=r"holds no image; 1 skipped: hidden"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / ".a.png").write_bytes(b"")
        list(segment_files([tmp_path / "empty"], MODEL, tmp_path / "out", "cpu"))
    assert not (tmp_path / "out").exists()


def test_a_cluster_has_one_colour_in_every_overlay_and_the_legend(shipped, views):
    pictures = [cause_lite.datasets.picture_files.as_picture(view) for view in views[:3]]
    colours: dict[int, set[tuple[int, ...]]] = {}
    for picture in pictures:
        outputs = outputs_of(shipped, picture, Segmenting())
        labels, overlay = (np.asarray(outputs[name]) for name in ("labels", "overlay"))
        shown = (overlay.astype(float) - (1 - BLEND) * picture.rgb) / BLEND
        for cluster in np.unique(labels):
            mean = shown[labels == cluster].mean(axis=0)
            assert np.abs(mean - palette(16)[cluster]).max() < 3
            colours.setdefault(int(cluster), set()).add(tuple(palette(16)[cluster]))
    assert len(colours) > 3 and all(len(shades) == 1 for shades in colours.values())


def test_the_legend_names_each_colour(tmp_path):
    photograph().save(tmp_path / "a.png")
    list(segment_files([tmp_path / "a.png"], MODEL, tmp_path / "out", "cpu"))
    with (tmp_path / "out" / "legend.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [str(number) for number in range(16)]
    assert [line["colour"] for line in lines] == [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(16).tolist()]


def test_confidence_is_the_margin(shipped, views):
    picture = cause_lite.datasets.picture_files.as_picture(views[0])
    grey = np.asarray(outputs_of(shipped, picture, Segmenting(confidence=True))["confidence"])
    similar = shipped.similarities(shipped.maps(views[0]), (128, 128))
    first, second = similar.topk(2, dim=1).values[0]
    assert np.array_equal(grey, ((first - second).clamp(0, 1) * 255).round().byte().numpy())


def test_the_crf_refines_at_full_size(shipped, views):
    pytest.importorskip("pydensecrf")
    picture = cause_lite.datasets.picture_files.as_picture(views[0])
    plain, refined = (np.asarray(outputs_of(shipped, picture, Segmenting(crf=crf))["labels"]) for crf in (False, True))
    assert refined.shape == plain.shape and 0.5 < (refined == plain).mean() < 1


def test_the_range_is_said_once(tmp_path):
    for number in range(3):
        Image.fromarray(np.asarray(photograph(0).convert("L")).astype(np.uint16) * 16).save(tmp_path / f"{number}.tif")
    said: list[str] = []
    list(segment_files([tmp_path], MODEL, tmp_path / "out", "cpu", say=said.append))
    assert len(said) == 1 and "--window LOW HIGH" in said[0]


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from PIL import Image
from cause_lite.lab.segmenting import segment_files
width, height = int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
small = Image.fromarray(rng.integers(0, 255, (height // 50, width // 50, 3)).astype(np.uint8))
small.resize((width, height)).save(Path(sys.argv[1]) / "large.jpg")
list(segment_files([Path(sys.argv[1]) / "large.jpg"], "scenes", Path(sys.argv[1]) / "out", "cpu"))
# The peak of this process alone: getrusage hands a parent's peak on to its child.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.parametrize("width, height", [(4000, 3000), (10_000, 2000)])
def test_large_photographs_need_little_memory(tmp_path, width, height):
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(width), str(height)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1500  # MB
    with Image.open(tmp_path / "out" / "large.labels.png") as labels:
        assert labels.size == (width, height)


# ---------------------------------------------------------------- folders, drawn

NAMES = st.sampled_from(["a", "B", "ü f", "x.y", "0", "._z", "masks", "IMG_1"])
ENDS = st.sampled_from([".png", ".jpg", ".PNG", ".tif", ".txt", "", ".heic", ".gif", ".dng"])
PLACES = st.sampled_from(["", "day", "day/deep", ".hidden", "labels", "masks/day", "images", "out"])
KINDS = st.sampled_from(
    ["image", "image", "image", "torn", "link", "folder link", "broken link", "label", "tens", "wide", "output"]
)
FILES = st.lists(st.tuples(PLACES, NAMES, ENDS, KINDS), min_size=1, max_size=8)


def write_folder(root: Path, files) -> None:
    image = photograph(0, 24, 32)
    for place, name, ending, kind in files:
        path = root / place / f"{name}{ending}"
        if path.exists() or path.is_symlink():
            continue
        if any((each.exists() or each.is_symlink()) and not each.is_dir() for each in path.parents):
            continue  # a file, or a link to nowhere, where a folder would have to be
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind in ("link", "broken link"):
            target = root.parent / "elsewhere.png"
            image.save(target)
            path.symlink_to(target if kind == "link" else root / "nowhere")
        elif kind == "folder link":
            (root.parent / "album").mkdir(exist_ok=True)
            image.save(root.parent / "album" / "z.png")
            path.symlink_to(root.parent / "album")
        elif kind == "torn" or ending in (".txt", "", ".heic", ".dng"):
            path.write_bytes(b"\xff\xd8\xff torn")
        elif kind == "label":
            Image.fromarray(classes(0, 24, 32)).save(path)
        elif kind == "tens":
            Image.fromarray(classes(0, 24, 32) * 10 + 7).save(path)
        elif kind == "wide":
            Image.fromarray(classes(0, 24, 64)).save(path)
        elif kind == "output":
            from cause_lite.lab.segmenting import save_output

            save_output(image, path)
        else:
            image.save(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES)
def test_every_file_of_a_folder_is_used_or_named(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("drawn") / "folder"
    root.mkdir()
    write_folder(root, files)
    try:
        found = survey(root)
    except UserError as error:
        assert "claimed by" in str(error) or "two label maps" in str(error)
        return
    skipped = [path for paths in found.skipped.values() for path in paths]
    used = [*found.images, *(mask for mask in found.masks if mask is not None)]
    everything = [path for path in root.rglob("*") if not path.is_dir()]
    assert not any(path.is_dir() and path.is_symlink() for path in used)
    for path in everything:
        inside_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        assert (path in used) + (path in skipped) == 1 or inside_hidden, path
    assert len(found.reasons()) == len(found.skipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*look like label maps")
        try:
            split = load_split(str(root), "train", 16)
            assert len(split) == len(found.images)
            assert len(split.images[:]) == len(split)
            if split.labels is not None:
                assert split.labels[:].max() < len(split.classes)
        except UserError as error:
            assert str(root) in str(error)
    if found.images:
        assert len({job.target.casefold() for job in plan_jobs([root])[0]}) == len(found.images)


# ---------------------------------------------------------------- georeferences

GEO = (
    (33550, "d", 3, (10.0, 10.0, 0.0), True),  # ModelPixelScale: metres
    (33922, "d", 6, (0.0, 0.0, 0.0, 500_000.0, 4_600_000.0, 0.0), True),  # ModelTiepoint
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632), True),  # GeoKeyDirectory
    (34737, "s", 0, "WGS 84 / UTM zone 32N|", True),
)


def geo_tags(path: Path) -> dict[int, object]:
    with tifffile.TiffFile(path) as file:
        return {code: file.pages[0].tags[code].value for code, *_ in GEO}


@pytest.mark.parametrize("kind", ["bytes", "deep", "bands"])
def test_labels_of_a_geotiff_lie_where_it_does(tmp_path, shipped, kind):
    levels = np.asarray(photograph())
    if kind == "bytes":
        tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb", extratags=GEO)
    elif kind == "deep":
        tifffile.imwrite(tmp_path / "a.tif", levels.astype(np.uint16) * 16, photometric="rgb", extratags=GEO)
    else:
        stored = np.concatenate([levels[..., ::-1], levels[..., :1]], axis=2)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="contig", extratags=GEO)
    how = Segmenting(reading=Reading(bands=(3, 2, 1) if kind == "bands" else None))
    written = list(segment_files([tmp_path / "a.tif"], MODEL, tmp_path / "out", "cpu", how))
    target = tmp_path / "out" / "a.labels.tif"
    assert target in written and is_output(target) and geo_tags(target) == geo_tags(tmp_path / "a.tif")
    with Image.open(tmp_path / "out" / "a.labels.png") as labels:
        assert np.array_equal(tifffile.imread(target), np.asarray(labels))
        if kind != "deep":
            assert np.array_equal(np.asarray(labels), shipped.segment(photograph()))
    with tifffile.TiffFile(target) as file:
        assert file.pages[0].nodata == 255 and file.geotiff_metadata["ProjectedCSTypeGeoKey"] == 32632


def test_pixels_without_data_stay_so_in_the_geotiff(tmp_path):
    levels = np.asarray(photograph().convert("L")).astype(np.int16)
    levels[:9] = -9999
    tags = (*GEO, (42113, "s", 0, "-9999", True))
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="minisblack", extratags=tags)
    list(segment_files([tmp_path / "a.tif"], MODEL, tmp_path / "out", "cpu"))
    labels = tifffile.imread(tmp_path / "out" / "a.labels.tif")
    assert (labels[:9] == 255).all() and labels[9:].max() < 16


def test_other_files_have_no_georeference(tmp_path):
    photograph().save(tmp_path / "a.tif")
    photograph().save(tmp_path / "b.png")
    assert read_georeference(tmp_path / "a.tif") is None and read_georeference(tmp_path / "b.png") is None
    list(segment_files([tmp_path / "a.tif"], MODEL, tmp_path / "out", "cpu"))
    assert not (tmp_path / "out" / "a.labels.tif").exists()


def test_a_georeference_that_cannot_be_kept_is_said(tmp_path):
    tifffile.imwrite(
        tmp_path / "turned.tif",
        np.asarray(photograph()),
        photometric="rgb",
        extratags=(*GEO, (274, "H", 1, 6, True)),
    )
    tifffile.imwrite(tmp_path / "plain.tif", np.asarray(photograph()), photometric="rgb", extratags=GEO)
    photograph().save(tmp_path / "none.tif")
    said: list[str] = []
    list(segment_files([tmp_path / "turned.tif"], MODEL, tmp_path / "out", "cpu", say=said.append))
    assert len(said) == 1 and "turned.tif: is stored turned, so its georeference is not kept" in said[0]
    assert read_georeference(tmp_path / "plain.tif") is not None and read_georeference(tmp_path / "none.tif") is None


# ---------------------------------------------------------------- read as in the fit


def test_a_model_reads_as_its_fit_did_unless_told_otherwise(tmp_path):
    """Bands in another order and a window, asked for once."""
    (tmp_path / "air").mkdir()
    for number in range(3):
        levels = np.asarray(photograph(number)).astype(np.uint16) * 16
        stored = np.concatenate([levels[..., ::-1], levels[..., :2]], axis=2)
        tifffile.imwrite(
            tmp_path / "air" / f"{number}.tif", stored, photometric="minisblack", planarconfig="contig", metadata=None
        )
    small = {"data.size": 64, "data.clusters": 4, "clusterbook.concepts": 16, "head.epochs": 1, "probe.epochs": 1}
    reading = {"data.window": (0, 4080), "data.bands": (3, 2, 1)}
    config = recipe(str(tmp_path / "air"), "mlp", backbone="scenes", changes=small | reading)
    assert np.abs(load_training(config).images.whole(1).astype(int) - np.asarray(photograph(1))).max() <= 1
    fit_to(config, tmp_path / "run", "cpu")
    segmenter = cause_lite.load(tmp_path / "run")
    assert segmenter.reading == Reading((0, 4080), (3, 2, 1)) and (tmp_path / "run" / "contact.png").exists()
    path = tmp_path / "air" / "0.tif"
    wanted = segmenter.segment(path, reading=Reading((0, 4080), (3, 2, 1)))
    assert np.array_equal(segmenter.segment(path), wanted)
    list(segment_files([path], str(tmp_path / "run"), tmp_path / "out", "cpu"))
    with Image.open(tmp_path / "out" / "0.labels.png") as labels:
        assert np.array_equal(np.asarray(labels), wanted)
    other = segmenter.segment(path, reading=Reading((0, 65_535), (1, 1, 1)))
    list(
        segment_files(
            [path], str(tmp_path / "run"), tmp_path / "o", "cpu", Segmenting(reading=Reading((0, 65_535), (1, 1, 1)))
        )
    )
    with Image.open(tmp_path / "o" / "0.labels.png") as labels:
        assert np.array_equal(np.asarray(labels), other)


def test_window_and_bands_of_a_named_data_set_are_refused():
    for changes in ({"data.window": (0, 1)}, {"data.bands": (3, 2, 1)}):
        with pytest.raises(UserError, match="scenes: window and bands are for a folder"):
            recipe("scenes", "mlp", changes=changes)
    with pytest.raises(UserError, match=r"scenes: data\.window and data\.bands are for a folder"):
        load_split("scenes", "train", reading=Reading((0, 1)))


def test_a_size_is_asked_for_and_rounded_to_the_patch(tmp_path, monkeypatch, capsys):
    (tmp_path / "f").mkdir()
    for number in range(2):
        photograph(number).save(tmp_path / "f" / f"{number}.jpg")
    words = ["fit", "--data", tmp_path / "f", "--head", "mlp", "--clusters", 3, "--size", 70, "--device", "cpu"]
    small = ["--set", "clusterbook.concepts=16", "--set", "head.epochs=1", "--set", "probe.epochs=1"]
    status, printed = call(monkeypatch, capsys, *words, *small, "--out", tmp_path / "run")
    printed = " ".join(printed.split())
    said = re.search(r"70 pixels are not a multiple of the backbone's (\d+); (\d+) are taken", printed)
    assert status == 0 and said is not None and int(said[2]) % int(said[1]) == 0
    assert cause_lite.load(tmp_path / "run").size == int(said[2])
