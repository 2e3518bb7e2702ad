"""Images and label maps in the field's layouts pair; maps that pair with nothing are said to look like label maps."""

from __future__ import annotations

import shutil
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from user_inputs import classes, photograph

from cause_lite import datasets
from cause_lite.datasets.folder_survey import Survey, survey
from cause_lite.runtime.files import UserError

# Where the photograph and the label map of NAME lie.
LAYOUTS = {
    "Roboflow": ("train/{}.jpg", "train/{}_mask.png"),
    "Pascal VOC": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "ADE20K": ("images/training/{}.jpg", "annotations/training/{}.png"),
    "mmsegmentation": ("img_dir/train/{}.jpg", "ann_dir/train/{}.png"),
    "Kaggle": ("train/{}.jpg", "train_masks/{}_mask.gif"),
    "Kaggle, two folders": ("train_images/{}.png", "train_masks/{}.png"),
    "MONAI": ("imagesTr/{}.png", "labelsTr/{}.png"),
    "nnU-Net": ("imagesTr/{}_0000.png", "labelsTr/{}.png"),
    "image, mask": ("image/{}.png", "mask/{}.png"),
    "Images, Masks": ("data/Images/{}.png", "data/Masks/{}.png"),
    "CamVid": ("val/{}.png", "valannot/{}.png"),
    "Cityscapes": ("leftImg8bit/val/x/{}_leftImg8bit.png", "gtFine/val/x/{}_gtFine_labelIds.png"),
    "MSRC": ("Images/{}.bmp", "GroundTruth/{}_GT.bmp"),
    "img_1, mask_1": ("a/img_{}.png", "a/mask_{}.png"),
    "nested in one": ("segmentation/images/{}.png", "segmentation/labels/{}.png"),
    "ours": ("day/{}.jpg", "labels/day/{}.png"),
}


def write(root, layout: tuple[str, str], names) -> None:
    for number, name in enumerate(names):
        for pattern, image in zip(layout, (photograph(number), Image.fromarray(classes(number))), strict=True):
            path = root / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def pairs_of(found: Survey) -> list[tuple]:
    return list(zip(found.images, found.masks, strict=True))


NAMES = st.lists(
    st.text("abxyz019ü", min_size=1, max_size=6), min_size=1, max_size=4, unique_by=lambda name: name.casefold()
)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(names=NAMES)
def test_a_layout_of_the_field_pairs(tmp_path_factory, layout, names):
    root = tmp_path_factory.mktemp("drawn")
    write(root, LAYOUTS[layout], names)
    found = survey(root)
    assert len(found.images) == found.labelled == len(names) and not found.skipped
    image, label = LAYOUTS[layout]
    pairs = [(str(file.relative_to(root)), str(mask.relative_to(root))) for file, mask in pairs_of(found)]
    assert sorted(pairs) == sorted((image.format(name), label.format(name)) for name in names)
    assert found.doubtful() is None


def test_a_layout_is_loaded_with_its_labels(tmp_path):
    write(tmp_path, LAYOUTS["Kaggle"], "abc")
    split = datasets.load_split(str(tmp_path), "train", 64)
    assert len(split) == 3 and split.labels is not None and split.labels[:].max() < len(split.classes)


def test_further_maps_of_a_photograph_are_skipped(tmp_path):
    write(tmp_path, LAYOUTS["Pascal VOC"], "abc")
    shutil.copytree(tmp_path / "SegmentationClass", tmp_path / "SegmentationObject")
    found = survey(tmp_path)
    assert len(found.images) == found.labelled == 3
    assert len(found.skipped["a label map without a photograph of its name"]) == 3
    assert all(mask is not None and "Class" in str(mask) for mask in found.masks)


def test_two_maps_that_could_be_meant_are_refused(tmp_path):
    write(tmp_path, ("img/{}.png", "masks_human/{}.png"), "ab")
    shutil.copytree(tmp_path / "masks_human", tmp_path / "masks_machine")
    with pytest.raises(UserError, match="has two label maps"):
        survey(tmp_path)


@pytest.mark.parametrize(
    "layout", [("A/{}.png", "B/{}.png"), ("{}.jpg", "{}_L.png"), ("x/{}.png", "annotations/z{}.png")]
)
def test_maps_that_pair_with_nothing_are_said_before_a_fit(tmp_path, layout):
    write(tmp_path, layout, ["p0", "p1", "p2", "p3"])
    with pytest.warns(UserWarning, match="4 of 8 photographs look like label maps"):
        datasets.load_split(str(tmp_path), "train", 64)


def test_photographs_are_not_taken_for_label_maps(tmp_path):
    """Words of label maps in the names of photographs, and photographs with plain parts."""
    for number, name in enumerate(["Ann/1.jpg", "Ann/2.jpg", "face_mask.jpg", "target/gt.png", "seg.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph(number).save(tmp_path / name)
    white = np.full((100, 128, 3), 255, np.uint8)
    white[30:70, 30:90] = np.asarray(photograph())[30:70, 30:90]
    (tmp_path / "shop").mkdir()
    Image.fromarray(white).save(tmp_path / "shop" / "a.png")
    found = survey(tmp_path)
    assert len(found.images) == 6 and not found.labelled and not found.skipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.load_split(str(tmp_path), "train", 64)


def test_names_in_two_forms_of_unicode_pair(tmp_path):
    composed, apart = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    for name, image in ((f"{composed}.png", photograph()), (f"labels/{apart}.png", Image.fromarray(classes()))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    assert survey(tmp_path).labelled == 1


@pytest.mark.parametrize("name", ["scenes", "photos", "camvid"])
def test_a_folder_named_as_a_data_set_is_taken_by_its_path_alone(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path / "data"))
    (tmp_path / name).mkdir()
    assert not datasets.is_folder(name)  # it holds no image
    photograph().save(tmp_path / name / "a.png")
    for path in (f"./{name}", str(tmp_path / name), tmp_path / name):
        assert datasets.is_folder(path) and len(datasets.load_split(path, "train", 64)) == 1
    with pytest.raises(UserError, match=rf"{name}: is the name of a data set and of a folder .*\./{name}"):
        datasets.load_split(name, "train", 64)


def test_the_folder_of_a_data_set_is_that_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path))
    (tmp_path / "pascalvoc").mkdir()
    photograph().save(tmp_path / "pascalvoc" / "a.png")
    assert not datasets.is_folder("pascalvoc")
