"""MSRC on a miniature in its layout: both encodings of the masks, splits, classes, and what is said of bad files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageColor

from cause_lite import datasets
from cause_lite.datasets.archives import unpack
from cause_lite.datasets.registry import PUBLISHED, TAXONOMIES
from cause_lite.runtime.files import UserError

MSRC = PUBLISHED["msrc"]
COLOURS = {name: ImageColor.getrgb(colour) for name, colour in TAXONOMIES["msrc"]["colours"].items()}
CLASS_OF_ID = np.array([MSRC.classes.index(name) if name in MSRC.classes else -1 for name in COLOURS])
NAMES = ("1_1_s", "1_2_s", "1_3_s", "2_10_s", "2_11_s", "2_12_s")
PALETTE = [part for colour in COLOURS.values() for part in colour]
IDS = arrays(np.uint8, (6, 8), elements=st.integers(0, len(COLOURS) - 1))


def encoded(ids: np.ndarray, kind: str) -> Image.Image:
    """A mask of ids (H, W) as a palette image or in direct colours."""
    mask = Image.fromarray(ids)
    mask.putpalette(PALETTE)
    return mask if kind == "palette" else mask.convert("RGB")


def ids_of(name: str) -> np.ndarray:
    return np.random.default_rng([int(part) for part in name.split("_")[:2]]).integers(0, 24, (24, 36), np.uint8)


def write(root, kind: str) -> None:
    ends = {"palette": ("jpg", "png"), "colours": ("bmp", "bmp")}[kind]
    for folder in ("Images", "GroundTruth"):
        (root / folder).mkdir(parents=True)
    for name in NAMES:
        photograph = np.repeat(ids_of(name)[..., None] * 10, 3, axis=2)
        Image.fromarray(photograph).save(root / "Images" / f"{name}.{ends[0]}")
        encoded(ids_of(name), kind).save(root / "GroundTruth" / f"{name}_GT.{ends[1]}")
    (root / "Images" / "Thumbs.db").write_bytes(b"left by a file manager")


@pytest.fixture(params=["palette", "colours"])
def miniature(request, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    write(tmp_path / "MSRC", request.param)
    return tmp_path / "MSRC"


@given(ids=IDS, kind=st.sampled_from(["palette", "colours"]))
def test_any_mask_is_read_back(tmp_path_factory, ids, kind):
    path = tmp_path_factory.getbasetemp() / f"mask-{kind}.png"
    encoded(ids, kind).save(path)
    assert np.array_equal(np.asarray(MSRC.read_label(path)), CLASS_OF_ID[ids])


def test_there_are_21_classes_and_three_kinds_are_ignored():
    assert len(MSRC.classes) == 21 and not {"void", "horse", "mountain"} & set(MSRC.classes)
    ignored = [name for name, number in zip(COLOURS, CLASS_OF_ID, strict=True) if number < 0]
    assert ignored == ["void", "horse", "mountain"]
    assert [MSRC.classes[number] for number in CLASS_OF_ID if number >= 0] == list(MSRC.classes)
    assert len(set(COLOURS.values())) == 24


@pytest.mark.parametrize("split, rest", [("test", 0), ("train", 1), ("val", 2)])
def test_splits_go_by_number_and_labels_by_colour(miniature, split, rest):
    wanted = [name for name in NAMES if int(name.split("_")[1]) % 3 == rest]
    loaded = datasets.load_split("msrc", split, 24, fit="squash")
    assert [loaded.name_of(number).rpartition("/")[2].partition(".")[0] for number in range(len(loaded))] == wanted
    for number, name in enumerate(wanted):
        squashed = Image.fromarray(ids_of(name)).resize((24, 24), Image.Resampling.NEAREST)
        assert np.array_equal(loaded.labels[number], CLASS_OF_ID[np.asarray(squashed)])


def test_a_setting_cuts_the_centre_instead(miniature):
    loaded = datasets.load_split("msrc", "train", 24, fit="centre")
    assert np.array_equal(loaded.labels[0], CLASS_OF_ID[ids_of(NAMES[0])[:, 6:30]])


def test_the_content_is_checked_by_name(miniature):
    MSRC.check("msrc")
    mask = next((miniature / "GroundTruth").glob("2_10_s*"))
    whole = mask.read_bytes()
    with Image.open(mask) as image:
        image.crop((0, 0, 10, 10)).save(mask)
    with pytest.raises(UserError, match=f"{mask.name}.*another size"):
        MSRC.check("msrc")
    mask.write_bytes(whole[:40])
    with pytest.raises(UserError, match=mask.name):
        MSRC.check("msrc")
    mask.unlink()
    with pytest.raises(UserError, match=r"2_10_s_GT\.png is missing"):
        MSRC.check("msrc")
    with pytest.raises(UserError, match=r"2_10_s_GT\.png is missing"):
        datasets.load_split("msrc", "train", 24)


def test_a_photograph_is_no_mask_and_few_strange_pixels_are_void(tmp_path):
    ids = np.full((20, 20), 3, np.uint8)
    few = np.array(encoded(ids, "colours"))
    few[0, :3] = (1, 2, 3)
    path = tmp_path / "1_1_s_GT.bmp"
    Image.fromarray(few).save(path)
    ids[0, :3] = 0
    assert np.array_equal(np.asarray(MSRC.read_label(path)), CLASS_OF_ID[ids])
    few[:2] = (1, 2, 3)
    Image.fromarray(few).save(path)
    with pytest.raises(UserError, match=r"1_1_s_GT.bmp: 10% of its pixels hold #010203"):
        MSRC.read_label(path)


@pytest.mark.parametrize("top", ["", "MSRC_ObjCategImageDatabase_v2/"])
def test_the_official_archive_is_unpacked_to_its_place(tmp_path, monkeypatch, top):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member in ("Images/1_1_s.bmp", "GroundTruth/1_1_s_GT.bmp", "ReadMe.txt"):
            archive.writestr(top + member, member)
    file, root = tmp_path / "msrc.zip", tmp_path / "MSRC"
    file.write_bytes(packed.getvalue())
    root.mkdir()
    assert unpack(file, root, MSRC.archives[0]) == 2
    assert (root / "Images" / "1_1_s.bmp").read_text() == "Images/1_1_s.bmp"


def test_what_lies_there_is_taken_and_counted(miniature):
    said: list[str] = []
    datasets.prepare("msrc", said.append)
    assert any("msrc/test: 2 images" in line and "officially 196" in line for line in said)


def test_without_the_files_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    with pytest.raises(UserError, match="cause-lite data msrc"):
        datasets.load_split("msrc", "test")
