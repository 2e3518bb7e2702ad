"""The benchmarks' official layouts, on miniatures: exact label arrays, crops, and what is said when a file lacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from cause_lite import datasets
from cause_lite.datasets.images import crops_of, flipped
from cause_lite.datasets.registry import PUBLISHED, TAXONOMIES
from cause_lite.lab import rehearsal
from cause_lite.runtime.files import UserError


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    root = tmp_path_factory.mktemp("stage")
    rehearsal.write_stage(root, set())
    return root


@pytest.fixture(autouse=True)
def on_stage(stage, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(stage))


def coco(name: str):
    table = TAXONOMIES[name]["class_of_id"]
    return lambda number: -1 if number == 255 else table[number]


# What each benchmark says of a label id, written out by hand beside the loader's tables.
RULES = {
    "cocostuff27": (rehearsal.COCO_IDS, coco("cocostuff27")),
    "coco81": (
        rehearsal.COCO_IDS,
        lambda number: -1 if number == 255 else 0 if number > 90 else coco("coco81")(number),
    ),
    "coco171": (rehearsal.COCO_IDS, coco("coco171")),
    "cityscapes": (rehearsal.CITYSCAPES_IDS, lambda number: number - 7 if 7 <= number <= 33 else -1),
    "pascalvoc": (rehearsal.VOC_IDS, lambda number: number if number <= 20 else -1),
    "potsdam3": (rehearsal.POTSDAM_IDS, lambda number: {0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2}.get(number, -1)),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", list(RULES))
def test_labels_are_exactly_what_the_taxonomy_says(name, split):
    table, rule = RULES[name]
    loaded = datasets.load_split(name, split, 96)
    assert len(loaded) == rehearsal.COUNTS[split] and len(loaded.classes) == len(set(loaded.classes))
    for number, (_, labels) in enumerate(rehearsal.oblong_scenes(split)):
        wanted = np.vectorize(rule)(rehearsal.label_ids(labels, table).astype(int))[:, 16:112]  # the centre of 96 x 128
        assert np.array_equal(loaded.labels[number], wanted)
        assert loaded.labels[number].dtype == np.int16
    assert loaded.labels.shape == (len(loaded), 96, 96) and -1 in loaded.labels[:]
    assert loaded.labels[:].max() < len(loaded.classes)


def test_the_class_tables_are_whole():
    assert [len(about.classes) for about in PUBLISHED.values()] == [11, 27, 81, 171, 27, 21, 3, 21]
    for name, official in PUBLISHED.items():
        found = set(official.class_of_id.tolist()) - {-1}
        assert found == set(range(len(official.classes))), name
    names = dict(zip(PUBLISHED["coco171"].classes, range(171), strict=True))
    ids = TAXONOMIES["coco171"]["class_of_id"]
    assert ids[0] == names["person"] and ids[156] == names["sky-other"] and ids[181] == names["wood"]
    assert PUBLISHED["cityscapes"].classes[:2] == ("road", "sidewalk")


def test_a_squashed_image_keeps_its_edges():
    loaded = datasets.load_split("pascalvoc", "val", 64, fit="squash")
    with Image.open(loaded.labels.files[0]) as mask:
        wanted = np.asarray(tv.resize(mask, [64, 64], tv.InterpolationMode.NEAREST)).astype(int)
    assert np.array_equal(loaded.labels[0], np.where(wanted <= 20, wanted, -1))


@pytest.mark.parametrize("kind, count", [("none", 1), ("five", 5), ("double", 20), ("super", 50)])
def test_crops_are_torchvisions(kind, count):
    """Corners and centre, then their mirror images, at each size; image and labels alike."""
    loaded = datasets.load_split("cocostuff27", "train", 32, crops=kind)
    assert len(loaded) == 3 * count == 3 * len(crops_of(kind))
    with Image.open(loaded.images.files[1]) as image:
        whole = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    wanted = [whole]
    if kind != "none":
        sizes = [[int(side * crop) for side in whole.shape[1:]] for crop in sorted({c.ratio for c in crops_of(kind)})]
        cut = tv.five_crop if kind == "five" else tv.ten_crop
        wanted = [part for size in sizes for part in cut(whole, size)]
    for number, part in enumerate(wanted):
        picture = Image.fromarray(part.permute(1, 2, 0).numpy())
        square = tv.center_crop(tv.resize(picture, [32], tv.InterpolationMode.NEAREST), [32, 32])
        assert np.array_equal(loaded.images[count + number], np.asarray(square)), number
    if kind == "five":
        assert not np.array_equal(loaded.labels[0], loaded.labels[1])


def test_evaluation_is_not_cropped():
    assert len(datasets.load_split("coco81", "val", 32, crops="double")) == 2


def test_rows_are_read_as_asked():
    images = datasets.load_split("cityscapes", "train", 32).images
    rows = images[np.array([2, 0])]
    assert np.array_equal(rows[1], images[0]) and np.array_equal(images[1:], images[[1, 2]])
    assert np.array_equal(flipped(images)[0], images[0][:, ::-1])
    assert images[:0].shape == (0, 32, 32, 3)
    assert flipped(images).fingerprint() != images.fingerprint()


def test_a_changed_file_changes_the_fingerprint(tmp_path, monkeypatch):
    rehearsal.write_stage(tmp_path, set())
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    before = datasets.load_split("cocostuff27", "val", 32).images.fingerprint()
    file = datasets.load_split("cocostuff27", "val", 32).images.files[0]
    Image.open(file).rotate(180).save(file)
    assert datasets.load_split("cocostuff27", "val", 32).images.fingerprint() != before


@pytest.mark.parametrize(
    "break_it, named",
    [
        (lambda root: (root / "images/val2017/000000000001.jpg").unlink(), r"000000000001\.jpg is missing"),
        (lambda root: (root / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt").unlink(), r"Coarse_7\.txt"),
        (lambda root: (root / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt").write_text("../../x\n"), "plain file"),
        (lambda root: (root / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt").write_bytes(b"\xff\xfe"), "read"),
        (lambda root: (root / "annotations/val2017/000000000002.png").write_bytes(b"torn"), r"000000000002\.png"),
        (
            lambda root: Image.new("RGB", (9, 9)).save(root / "annotations/val2017/000000000002.png"),
            "label map is grey",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path, monkeypatch, break_it, named):
    rehearsal.write_stage(tmp_path, set())
    break_it(tmp_path / "cocostuff")
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=named):
        datasets.load_split("cocostuff27", "val", 32).labels[:]


def test_what_lies_there_is_counted(capsys):
    said = []
    datasets.prepare("pascalvoc", said.append)
    assert any("train: 3 images" in line and "officially 1,464" in line for line in said)
    counts = datasets.class_shares("potsdam3")
    assert counts["val"][0] == 2 and counts["val"][1].sum() == pytest.approx(1)


def test_a_login_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"sign up at https://www\.cityscapes-dataset\.com"):
        datasets.prepare("cityscapes", print)


@pytest.fixture
def camvid_frame(tmp_path, monkeypatch):
    """CamVid with one frame of 48 x 36 pixels in its training split."""
    rng = np.random.default_rng(0)
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    for name, shape, top in (("train", (36, 48, 3), 255), ("trainannot", (36, 48), 12)):
        (tmp_path / "CamVid" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, top, shape).astype(np.uint8)).save(tmp_path / "CamVid" / name / "0.png")
    return Image.open(tmp_path / "CamVid" / "train" / "0.png")


def test_camvid_is_squared_as_asked(camvid_frame):
    squashed = datasets.load_split("camvid", "train", 20, fit="squash", resize="nearest")
    assert np.array_equal(squashed.images[0], np.asarray(camvid_frame.resize((20, 20), Image.Resampling.NEAREST)))
    assert squashed.labels.shape == (1, 20, 20)
    centre = datasets.load_split("camvid", "train", 36, resize="nearest")
    assert np.array_equal(centre.images[0], np.asarray(camvid_frame)[:, 6:42])
    bilinear, default = (datasets.load_split("camvid", "train", 20, resize=how) for how in ("bilinear", None))
    assert np.array_equal(bilinear.images, default.images)
    assert datasets.load_split("camvid", "train", 18, crops="five").images.shape == (5, 18, 18, 3)
