"""A folder of one's own images: fitted with no labels, with a contact sheet; bad files are named or left out."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import functional as tv
from user_inputs import classes, labelled_folder, photograph, with_orientation

import cause_lite
from cause_lite import checkpoints, datasets
from cause_lite.backbones.loading import bundled_dir, labels_seen, licence_of
from cause_lite.checkpoints import hub
from cause_lite.checkpoints.export import export
from cause_lite.checkpoints.segmenter_folder import shape_of, write_shape
from cause_lite.datasets import folder_survey, picture_files, scenes
from cause_lite.datasets.arrays import Reading
from cause_lite.datasets.folder_survey import reading_notes, survey
from cause_lite.datasets.folders import same_aspect
from cause_lite.datasets.label_table import read_table
from cause_lite.lab import rehearsal
from cause_lite.lab.colours import palette
from cause_lite.lab.evaluating import evaluate_run
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fit_to, load_training, score_segmenter, with_size_of
from cause_lite.lab.segmenting import Segmenting, segment_files
from cause_lite.runtime.files import UserError, read_json

SMALL = {
    "data.size": 64,
    "clusterbook.concepts": 16,
    "head.projection_dim": 16,
    "head.epochs": 1,
    "probe.epochs": 1,
    "data.clusters": 5,
}


@pytest.fixture
def photographs(tmp_path):
    """Images of several kinds and sizes, one in a subfolder, and a text file that is none."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "c.webp", "more/d.PNG", "e.tif", "ü f.jpg"]):
        view = scenes.render(0, "train", number).image[: 100 + 5 * number]
        Image.fromarray(view).save(folder / name)
    Image.fromarray(view).convert("CMYK").save(folder / "print.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_without_labels_gives_a_segmenter_and_a_contact_sheet(photographs, tmp_path):
    config = recipe(str(photographs), "mlp", backbone="scenes", changes=SMALL)
    fit_to(config, tmp_path / "run", "cpu")
    labels = checkpoints.load(tmp_path / "run").segment(np.array(Image.open(photographs / "a.png")))
    assert labels.shape == (100, 128) and labels.max() < 5
    with Image.open(tmp_path / "run" / "contact.png") as sheet:
        assert sheet.width > 300 and sheet.height > 100
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50
    assert plt.get_fignums() == []  # a notebook would show the sheet below the fit


def test_scaling_of_deep_levels_is_said_once_for_each_kind_of_file(photographs):
    assert reading_notes(survey(photographs).images) == []
    for number in range(3):
        Image.fromarray(np.arange(1000, 2600, dtype=np.uint16).reshape(40, 40)).save(photographs / f"deep{number}.png")
    (photographs / "damaged.jpg").write_bytes(b"no image")
    (note,) = reading_notes(survey(photographs).images)
    assert note.startswith(f"{photographs / 'deep0.png'} (and 2 of its kind): values of 1000 to 2599 are scaled")
    assert reading_notes(survey(photographs).images, Reading(window=(0, 4000))) == []


def test_a_file_that_cannot_be_read_is_named_or_left_out(photographs, tmp_path):
    (photographs / "torn.jpg").write_bytes((photographs / "b.jpg").read_bytes()[:300])
    (photographs / "loop.png").symlink_to(photographs / "loop.png")
    config = recipe(str(photographs), "mlp", backbone="scenes", changes=SMALL)
    with pytest.raises(UserError, match=r"torn\.jpg"):
        fit_to(config, tmp_path / "run", "cpu")
    assert not (tmp_path / "run" / "fit.json").exists()
    skipping = recipe(str(photographs), "mlp", backbone="scenes", changes=SMALL | {"data.skip_bad": True})
    with pytest.warns(UserWarning, match=r"1 images are left out:\n.*torn\.jpg"):
        assert len(load_training(skipping)) == 7


def test_reading_in_threads_leaves_the_warnings_alone(photographs):
    """To change the filters of a process from its threads would lose what others warn of."""
    before = warnings.filters
    with picture_files.opened(photographs / "a.png"):
        assert warnings.filters is before


def test_a_folder_of_no_use_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        datasets.load_split(str(tmp_path / "empty"), "train", 64)
    (tmp_path / "empty" / "a.png").write_text("none")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        datasets.without_bad(datasets.load_split(str(tmp_path / "empty"), "train", 64))


# ---------------------------------------------------------------- label maps


def grey(number: int) -> Image.Image:
    return Image.fromarray(classes(number))


def load(folder, size: int = 64, **options) -> datasets.Split:
    return datasets.load_split(str(folder), "train", size, **options)


def squared(labels: np.ndarray, size: int = 64) -> np.ndarray:
    """The centre square of a label map (H, W), by the nearest pixel."""
    height, width = labels.shape
    wide = Image.fromarray(labels).resize((int(size * width / height), size), Image.Resampling.NEAREST)
    left = round((wide.width - size) / 2)
    return np.asarray(wide)[:, left : left + size]


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "gif", "webp"])
@pytest.mark.parametrize("name", ["labels", "masks", "Masks"])
def test_label_maps_have_any_ending_and_lie_in_labels_or_masks(tmp_path, name, ending):
    folder = labelled_folder(tmp_path / "f", grey, ending="png")
    for path in (folder / "labels").iterdir():
        with Image.open(path) as image:  # WebP holds colours alone: R = G = B
            lossless = {"lossless": True} if ending == "webp" else {}
            (image.convert("RGB") if ending == "webp" else image).save(path.with_suffix(f".{ending}"), **lossless)
        if ending != "png":
            path.unlink()
    (folder / "labels").rename(folder / name)
    split = load(folder)
    assert len(split) == 3 and len(split.classes) == 8 and split.num_clusters == 8
    assert all(np.array_equal(split.labels[n], squared(classes(n))) for n in range(3))


def test_label_maps_pair_by_relative_path(tmp_path):
    for part in ("a", "b"):
        for place, image in ((part, photograph), (f"labels/{part}", grey)):
            (tmp_path / place).mkdir(parents=True)
            image(0 if part == "a" else 7).save(tmp_path / place / "0.png")
    split = load(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in split.labels.files] == ["labels/a/0.png", "labels/b/0.png"]
    assert np.array_equal(split.labels[1], squared(classes(7)))
    (tmp_path / "labels" / "a" / "0.png").rename(tmp_path / "labels" / "0.png")
    with pytest.raises(UserError, match=r"labels/0\.png: is claimed by a/0\.png and b/0\.png|b/0\.png: has two"):
        load(tmp_path)


def test_images_beside_masks(tmp_path):
    for place, image in (("images/x", photograph), ("masks/x", grey)):
        (tmp_path / place).mkdir(parents=True)
        image(0).save(tmp_path / place / "0.png")
    assert len(load(tmp_path)) == 1 and np.array_equal(load(tmp_path).labels[0], squared(classes(0)))


def test_two_label_maps_of_one_photograph_are_refused(tmp_path):
    folder = labelled_folder(tmp_path / "f", grey)
    grey(0).save(folder / "labels" / "0.tif")
    with pytest.raises(UserError, match=r"0\.jpg: has two label maps, .*0\.png and .*0\.tif"):
        load(folder)


def test_some_photographs_have_a_label_map(tmp_path):
    """Forty photographs and eight label maps: the rest counts nowhere, and is not scored."""
    folder = labelled_folder(tmp_path / "f", grey, count=5)
    for number in (1, 3):
        (folder / "labels" / f"{number}.png").unlink()
    grey(0).save(folder / "labels" / "spare.png")
    split = load(folder)
    assert len(split) == 5 and (split.labels[1] == -1).all() and split.labels[:].shape == (5, 64, 64)
    assert len(split.labelled()) == 3 and np.array_equal(split.labelled().labels[1], squared(classes(2)))
    line = survey(folder).summary()
    assert "5 images, 3 with a label map" in line and "1 skipped: a label map without a photograph" in line
    assert "spare.png" in line


@pytest.mark.parametrize(
    "mask, found",
    [
        (lambda n: Image.fromarray(((classes(n) == 0) * 255).astype(np.uint8)), "ids 0, 255"),
        (lambda n: Image.fromarray(classes(n) * 10 + 7), "ids 7, 17, 27, 37, 47, 57"),
        (lambda n: Image.fromarray(classes(n).astype(np.uint16) * 999), "ids 0, 999, 1998"),
        (lambda n: Image.fromarray(palette(9)[classes(n)]), "colours #"),
    ],
)
def test_ids_that_nobody_declared_stop_with_their_list(tmp_path, mask, found):
    folder = labelled_folder(tmp_path / "f", mask, count=6)
    with pytest.raises(UserError, match=f"{found}.*labels.csv"):
        load(folder)


def test_a_table_names_ids_and_merges_and_ignores(tmp_path):
    folder = labelled_folder(tmp_path / "f", lambda n: Image.fromarray(classes(n) * 10 + 7), count=6)
    (folder / "labels.csv").write_text(
        "id,name,ignore\n7,air,\n17,ground,\n27,wet,\n37,ground,no\n47,plant,\n57,,yes\n67,moving,\n77,moving,\n"
    )
    split = load(folder)
    assert split.classes == ("air", "ground", "wet", "plant", "moving") and split.num_clusters == 5
    to_class = np.array([0, 1, 2, 1, 3, -1, 4, 4])
    assert np.array_equal(split.labels[2], to_class[squared(classes(2))])
    (folder / "labels.csv").write_text("id,name\n7,air\n17,ground\n")
    with pytest.raises(UserError, match=r"label maps hold ids that .*labels\.csv does not declare: .*37, 47"):
        load(folder)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_names_colours(tmp_path, separator):
    colours = palette(8)
    folder = labelled_folder(tmp_path / "f", lambda n: Image.fromarray(colours[classes(n)]), count=6)
    ways = ["#{0:02x}{1:02x}{2:02x}", "rgb({0},{1},{2})", "{0} {1} {2}"]
    lines = [f'{n}{separator}"{ways[n % 3].format(*colours[n])}"' for n in range(8)]
    (folder / "labels.csv").write_text(f"name{separator}color\n" + "\n".join(lines), encoding="utf-8-sig")
    split = load(folder)
    assert split.classes == tuple("01234567") and np.array_equal(split.labels[3], squared(classes(3)))
    painted = colours[classes(0)]
    painted[0, 0] = (1, 2, 3)
    Image.fromarray(painted).save(folder / "labels" / "0.png")
    with pytest.raises(UserError, match=r"0\.png holds #010203"):
        load(folder)


def test_colour_files_of_equal_channels_are_ids_and_palettes_keep_their_numbers(tmp_path):
    folder = labelled_folder(tmp_path / "rgb", lambda n: Image.fromarray(np.repeat(classes(n)[..., None], 3, 2)))
    assert np.array_equal(load(folder).labels[1], squared(classes(1)))

    def painted(number: int) -> Image.Image:
        image = grey(number).convert("P")
        image.putpalette(palette(8).ravel().tolist())
        return image

    assert np.array_equal(load(labelled_folder(tmp_path / "p", painted)).labels[1], squared(classes(1)))


@pytest.mark.parametrize("damaged", [False, True])
def test_label_maps_that_are_jpegs_or_unreadable_are_named(tmp_path, damaged):
    folder = labelled_folder(tmp_path / "f", lambda n: Image.fromarray(classes(n).astype(np.uint8)))
    for path in sorted((folder / "labels").iterdir()):
        if damaged:
            path.write_text("no picture")
        else:
            Image.open(path).convert("L").save(path.with_suffix(".jpg"), quality=95)
            path.unlink()
    with pytest.raises(UserError, match=r"0\.png: " if damaged else r"0\.jpg: is a JPEG.*save label maps as PNG"):
        load(folder)


def test_what_a_mask_leaves_transparent_is_ignored(tmp_path):
    def half(number: int) -> Image.Image:
        alpha = np.where(np.arange(128) < 64, 0, 255).astype(np.uint8)[None].repeat(100, 0)
        return Image.fromarray(np.dstack([classes(number), alpha]), "LA")

    labels = load(labelled_folder(tmp_path / "f", half)).labels[0]
    assert (labels[:, :30] == -1).all() and np.array_equal(labels[:, 34:], squared(classes(0))[:, 34:])


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "must name the columns id,name,colour,ignore"),
        ("number,what\n1,sky", "must name the columns"),
        ("id,name\nsky,0", "line 2: id must be a whole number from 0, not 'sky'"),
        ("id,name\n0,sky\n0,sea", "line 3: 0 is declared twice"),
        ("id,name\n0,", "line 2: has no name"),
        ("id,name,ignore\n0,sky,maybe", "line 2: ignore must be yes or no, not 'maybe'"),
        ("id,name,ignore\n0,sky,yes", "declares no class that counts"),
        ("colour,name\n#12,sky", "colour must be #rrggbb"),
        ("id,name\n0,sky,extra,values", "more values than columns"),
        ("id,name\n-1,sky", "id must be a whole number from 0"),
        ("id,colour,name\n,,sky", "has neither id nor colour"),
    ],
)
def test_a_wrong_table_is_named_by_line(tmp_path, text, reason):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=rf"labels\.csv.*{reason}"):
        read_table(tmp_path / "labels.csv")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"id,name\n0,\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_table(tmp_path / "labels.csv")


def test_a_mask_of_another_shape_is_refused_and_of_another_size_fits(tmp_path):
    def scaled(width: int, height: int):
        return lambda n: grey(n).resize((width, height), Image.Resampling.NEAREST)

    twice = load(labelled_folder(tmp_path / "twice", scaled(256, 200)))
    assert np.array_equal(twice.labels[1], squared(np.asarray(scaled(256, 200)(1))))
    with pytest.raises(
        UserError, match=r"3 label maps have another shape .*0\.png has 256 x 128 pixels, 0\.jpg 128 x 100"
    ):
        load(labelled_folder(tmp_path / "other", scaled(256, 128)))
    with pytest.raises(UserError, match="another shape"):
        load(labelled_folder(tmp_path / "turned", lambda n: grey(n).transpose(Image.Transpose.ROTATE_90)))


@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(1, 12))
def test_one_shape_at_two_scales(width, height, scale):
    small = (max(1, int(width / scale)), max(1, int(height / scale)))
    assert same_aspect((width, height), (width, height))
    assert same_aspect(small, (width, height)) == same_aspect((width, height), small)
    if min(small) > 2 * scale:
        assert same_aspect(small, (width, height))
        assert same_aspect((round(width / scale), round(height / scale)), (width, height))
        assert not same_aspect((small[0], small[1] * 2), (width, height))


def test_masks_without_a_labelled_pixel_are_an_error(tmp_path):
    folder = labelled_folder(tmp_path / "f", lambda n: Image.new("L", (128, 100), 255))
    with pytest.raises(UserError, match="every pixel of every label map is ignored"):
        load(folder)
    grey(0).save(folder / "labels" / "0.png")
    with pytest.raises(UserError, match=r"2 label maps ignore every pixel.*labels/1\.png.*labels/2\.png"):
        load(folder)


def test_a_label_map_that_cannot_be_read_is_named_or_left_out(tmp_path):
    folder = labelled_folder(tmp_path / "f", grey)
    (folder / "labels" / "1.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"labels/1\.png: is not an image"):
        _ = load(folder).labels[:]
    kept, wrong = datasets.without_bad(load(folder))
    assert len(kept) == len(kept.labels) == 2 and "1.png" in wrong[0]
    Image.fromarray(classes(1).astype(np.float32) + 0.5).save(folder / "labels" / "1.tif")
    (folder / "labels" / "1.png").unlink()
    with pytest.raises(UserError, match=r"labels/1\.tif: a label map holds whole numbers"):
        _ = load(folder).labels[:]


def test_labels_follow_photographs_that_are_stored_turned(tmp_path):
    """A phone's photographs, labelled as a viewer shows them."""
    plain = labelled_folder(tmp_path / "plain", grey, ending="png")
    turned = labelled_folder(tmp_path / "turned", grey, ending="png")
    for number in range(3):
        with_orientation(photograph(number), 6, turned / f"{number}.jpg")
    first, second = load(plain), load(turned)
    assert np.abs(first.images[:].astype(int) - second.images[:]).mean() < 4
    assert np.array_equal(first.labels[:], second.labels[:])


def test_clusters_and_classes_are_separate_numbers(tmp_path):
    folder = labelled_folder(tmp_path / "f", grey, count=6)
    config = recipe(str(folder), "mlp", backbone="scenes", changes=SMALL | {"data.clusters": 3})
    fitted = fit_to(config, tmp_path / "run", "cpu").segmenter
    assert len(fitted.cluster_probe.centres) == 3 and len(fitted.classes) == 8
    again = checkpoints.load(tmp_path / "run")
    assert np.array_equal(again.segment(photograph()), fitted.segment(photograph()))
    scores = score_segmenter(again, config)["cluster"]
    assert scores.confusion.shape == (3, 8) and (scores.matching() >= 0).sum() == 3
    assert sum(value == 0 for value in scores.compute()["iou"]) >= 5  # classes without a cluster count as wrong
    more = recipe(str(folder), "mlp", backbone="scenes", changes=SMALL | {"data.clusters": 12})
    fit_to(more, tmp_path / "more", "cpu")
    assert evaluate_run(tmp_path / "more", device="cpu")["scores"]["cluster"]["miou"] >= 0


def test_clusters_of_a_named_data_set_are_refused():
    with pytest.raises(UserError, match="scenes: clusters are for a folder"):
        recipe("scenes", "mlp", changes={"data.clusters": 5})
    with pytest.raises(UserError, match=r"scenes: data\.clusters is for a folder"):
        datasets.load_split("scenes", "train", clusters=5)


def test_more_clusters_than_patches_get_one_line(tmp_path):
    photograph().save(tmp_path / "0.jpg")
    config = recipe(str(tmp_path), "mlp", backbone="scenes", changes=SMALL | {"data.clusters": 2000})
    with pytest.raises(UserError, match=r"2,000 clusters cannot be found in 1 images of 64 patches"):
        fit_to(config, tmp_path / "run", "cpu")


def test_a_size_that_the_patch_does_not_divide_is_rounded_and_said(tmp_path, small_backbone):
    photograph().save(tmp_path / "0.jpg")
    small_backbone.patch, patch = 14, small_backbone.patch
    try:
        with pytest.warns(UserWarning, match=r"data\.size: 320 pixels .* backbone's 14; 322 are taken"):
            assert with_size_of(small_backbone, recipe(str(tmp_path), "mlp")).data.size == 322
        with pytest.raises(UserError, match=r"data\.size: 128 pixels .*--set data\.size=126"):
            with_size_of(small_backbone, recipe("scenes", "mlp"))
    finally:
        small_backbone.patch = patch


# ---------------------------------------------------------------- what is used and what is skipped


def test_hidden_files_links_and_others_are_counted(photographs, tmp_path):
    (photographs / "._a.png").write_bytes(b"\0\5\x16\7" + b"\0" * 100)
    (photographs / ".ipynb_checkpoints").mkdir()
    shutil.copy(photographs / "a.png", photographs / ".ipynb_checkpoints" / "a.png")
    (photographs / "raw.dng").write_bytes(b"raw")
    (photographs / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (photographs / "again").symlink_to(photographs)
    outside = tmp_path / "outside"
    outside.mkdir()
    photograph(9).save(outside / "z.png")
    (photographs / "linked").symlink_to(outside)
    (photographs / "one.png").symlink_to(outside / "z.png")
    found = survey(photographs)
    names = [str(path.relative_to(photographs)) for path in found.images]
    assert len(names) == 9 and {"linked/z.png", "one.png"} <= set(names)
    counts = {reason: len(files) for reason, files in found.skipped.items()}
    assert counts == {
        "hidden": 2,
        "a link that leads nowhere": 1,
        "a link to a folder that is read already": 1,
        ".dng is no image format that is read": 1,
        ".txt is no image format that is read": 1,
    }
    assert "1 skipped: .dng is no image format that is read (raw.dng)" in found.summary()
    assert len(load(photographs)) == 9


def test_heic_without_its_plugin_is_counted(photographs, monkeypatch):
    monkeypatch.setattr(folder_survey, "heic_is_read", lambda: False)
    for number in range(4):
        (photographs / f"h{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert "4 skipped: HEIC needs pillow-heif" in survey(photographs).summary()
    assert len(load(photographs)) == 7


def test_what_this_program_writes_is_no_photograph(photographs, tmp_path):
    before = datasets.folder_files(photographs)
    config = recipe(str(photographs), "mlp", backbone="scenes", changes=SMALL)
    fit_to(config, photographs / "run", "cpu")
    how = Segmenting(confidence=True)
    list(segment_files([photographs], str(photographs / "run"), photographs / "out", "cpu", how))
    shutil.copy(photographs / "run" / "contact.png", photographs / "contact.png")
    shutil.copy(photographs / "out" / "a.overlay.png", photographs / "renamed.png")
    assert datasets.folder_files(photographs) == before
    reasons = survey(photographs).skipped["written by this program"]
    assert {"contact.png", "renamed.png", "a.labels.png", "a.confidence.png"} <= {path.name for path in reasons}
    with pytest.raises(UserError, match=r"contact\.png: was written by this program"):
        list(segment_files([photographs / "contact.png"], str(photographs / "run"), tmp_path / "o", "cpu"))
    assert not (tmp_path / "o").exists()


def test_two_projects_of_the_same_names_do_not_share_features(tmp_path, monkeypatch):
    """The same relative paths, sizes and times; other pixels."""
    loaded = []
    for project, first in (("a", 0), ("b", 40)):
        (tmp_path / project / "imgs").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / project)
        for number in range(3):
            path = tmp_path / project / "imgs" / f"{number}.bmp"
            photograph(number + first).save(path)
            os.utime(path, (0, 0))
        config = recipe("imgs", "mlp", changes=SMALL)
        loaded.append(load_training(config).images)
    assert loaded[0].fingerprint() != loaded[1].fingerprint()
    for number in range(3):  # and content alone counts
        shutil.copy(tmp_path / "a" / "imgs" / f"{number}.bmp", tmp_path / "b" / "imgs" / f"{number}.bmp")
    assert load(tmp_path / "a" / "imgs").images.fingerprint() == load(tmp_path / "b" / "imgs").images.fingerprint()


def test_a_run_works_from_any_folder(tmp_path, monkeypatch):
    labelled_folder(tmp_path / "here" / "data", grey)
    labelled_folder(tmp_path / "there" / "data", lambda n: grey(n + 30))
    monkeypatch.chdir(tmp_path / "here")
    config = recipe("data", "mlp", changes=SMALL)
    monkeypatch.chdir(tmp_path / "there")
    assert load_training(config).images.files[0] == tmp_path / "here" / "data" / "0.jpg"


def test_a_strip_is_cut_before_it_is_scaled(tmp_path, monkeypatch):
    """Memory does not grow with the length of a strip: nothing larger than some squares is made."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1, 20_000, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    sizes, resize = [], tv.resize

    def watched(image, size, *rest):
        scaled = resize(image, size, *rest)
        sizes.append(scaled.width * scaled.height)
        return scaled

    monkeypatch.setattr(tv, "resize", watched)
    for fit in ("centre", "squash"):
        assert load(tmp_path, 320, fit=fit).images[0].shape == (320, 320, 3)
    assert max(sizes) <= 320 * 320 * 16


@pytest.fixture
def run(photographs, tmp_path):
    fit_to(recipe(str(photographs), "tr", backbone="scenes", changes=SMALL), tmp_path / "run", "cpu")
    return tmp_path / "run"


def test_a_convolutional_backbone_goes_with_the_model(photographs, tmp_path, monkeypatch):
    shutil.copytree(bundled_dir() / "photos", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    centred = {"backbone.centre": "training", "backbone.context": 0}
    fit_to(
        recipe(str(photographs), "mlp", backbone=f"{tmp_path}/mine", changes=SMALL | centred), tmp_path / "run", "cpu"
    )
    export(tmp_path / "run", tmp_path / "model")
    image = scenes.render(0, "val", 1).image
    monkeypatch.chdir("/")  # a run finds its backbone from anywhere
    wanted = checkpoints.load(tmp_path / "run").segment(image)
    shutil.rmtree(tmp_path / "mine")
    sent = snapshot(tmp_path / "model", tmp_path / "sent", hub.FILES)  # what a push and a download leave of the folder
    assert np.array_equal(cause_lite.load(sent).segment(image), wanted)
    assert "| backbone | mine, centre training, context 0 |" in (sent / "README.md").read_text()


def snapshot(folder: Path, target: Path, patterns: list[str]) -> Path:
    """Copy what the Hub keeps of a folder."""
    for path in filter_repo_objects(
        [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()], allow_patterns=patterns
    ):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path, target / path)
    return target


def test_the_licence_of_a_backbone_is_that_of_its_weights():
    wanted = {"efficientnet-lite2": "apache-2.0", "photos": "MIT (made by cause-lite)", "./photos": None}
    wanted |= {"vit_small_patch8_224.dino": "apache-2.0", "no_such_network": None}
    assert {name: licence_of(name) for name in wanted} == wanted
    assert labels_seen("vit_small_patch8_224.dino") is labels_seen("photos") is None
    assert labels_seen("resnet18.a1_in1k") == "ImageNet's class labels"


@pytest.mark.parametrize("size", [8, 16])
def test_a_size_that_the_backbone_cannot_see_is_named(photographs, tmp_path, size):
    config = recipe(str(photographs), "mlp", backbone="photos", changes=SMALL | {"data.size": size})
    with pytest.raises(UserError, match=f"data.size: the backbone cannot see {size} pixels"):
        fit_to(config, tmp_path / "run", "cpu")


def test_a_model_refuses_a_backbone_of_its_name_with_other_weights(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundled_dir() / "scenes", tmp_path / "mine")
    fit_to(recipe(str(photographs), "mlp", backbone="mine", changes=SMALL), tmp_path / "run", "cpu")
    before = (tmp_path / "mine" / "vit.safetensors").read_bytes()
    weights = {name: 2 * value for name, value in load_file(tmp_path / "mine" / "vit.safetensors").items()}
    save_file(weights, tmp_path / "mine" / "vit.safetensors")
    with pytest.raises(UserError, match=r"was fitted on other weights of the backbone '.*mine'"):
        checkpoints.load(tmp_path / "run")
    (tmp_path / "mine" / "vit.safetensors").write_bytes(before)
    assert checkpoints.load(tmp_path / "run").backbone is not None


def test_an_exported_folder_is_read_back(run, tmp_path):
    export(run, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "No label had any influence" in card and read_json(run / "fit.json")["config_hash"] in card
    image = scenes.render(0, "val", 1).image
    assert np.array_equal(cause_lite.load(tmp_path / "model").segment(image), checkpoints.load(run).segment(image))
    with pytest.raises(UserError, match="exists"):
        export(run, tmp_path / "model")
    with pytest.raises(UserError, match="no segmenter of that name"):
        export(tmp_path / "nothing", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_hub_gets_and_gives_the_folder(run, tmp_path, monkeypatch):
    """The hub is stood in for by a folder; what is asked of it are tensors, JSON and the card."""
    export(run, tmp_path / "model")
    pushed = {}

    class Api:
        def create_repo(self, name, private, exist_ok):
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            pushed.update(name=repo_id, patterns=allow_patterns)

    monkeypatch.setattr(hub, "HfApi", Api)
    assert hub.push(tmp_path / "model", "me/scenes") == "https://hub/me/scenes"
    assert pushed["name"] == "me/scenes" and not any(p.endswith((".py", ".bin", "*")) for p in pushed["patterns"])
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path / "model"))
    assert shape_of(cause_lite.load("hf:me/scenes")) == shape_of(checkpoints.load(run))
    with pytest.raises(UserError, match="no exported folder"):
        hub.push(run / "nowhere", "me/scenes")

    def refused(name, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", refused)
    with pytest.raises(UserError, match="hf:me/other: no network"):
        cause_lite.load("hf:me/other")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"dim": "wide"}, "`dim` is 'wide'"),
        ({"num_concepts": 10**9}, "`num_concepts` is 1000000000"),
        ({"head": "cnn"}, "`head` is 'cnn'"),
        ({"size": 0}, "`size` is 0"),
        ({"classes": [1]}, "`classes`"),
        ({"num_classes": True}, "`num_classes` is True"),
    ],
)
def test_a_shape_that_lies_is_refused(run, change, named):
    shape = read_json(run / "segmenter.json")
    write_shape(run, shape | change)
    with pytest.raises(UserError, match=named):
        checkpoints.load(run)


def test_nothing_is_said_where_nothing_is_wrong(photographs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_training(recipe(str(photographs), "mlp", changes=SMALL | {"data.skip_bad": True}))) == 7


def test_a_folder_of_masks_that_matches_nothing_is_said(tmp_path):
    for place, name in (("images", "a"), ("masks", "b")):
        (tmp_path / place).mkdir()
        grey(0).save(tmp_path / place / f"{name}.png")
    assert "0 with a label map; 1 skipped: a label map without a photograph of its name (masks/b.png)" in (
        survey(tmp_path).summary()
    )
    assert load(tmp_path).labels is None


def test_a_patch_of_fourteen_pixels_is_fitted_at_a_size_that_it_divides(photographs, tmp_path, monkeypatch):
    """DINOv2's shape, with weights of a stand-in."""
    name = "vit_small_patch14_dinov2.lvd142m"
    monkeypatch.setenv("CAUSE_DATA", str(tmp_path / "data"))
    rehearsal.write_weights(name, tmp_path / "data" / "weights")
    config = recipe(str(photographs), "mlp", backbone=name, changes=SMALL | {"data.size": 100})
    with pytest.warns(UserWarning, match=r"data\.size: 100 pixels .* backbone's 14; 98 are taken"):
        fit_to(config, tmp_path / "run", "cpu")
    segmenter = checkpoints.load(tmp_path / "run")
    assert segmenter.size == 98 and segmenter.segment(photographs / "a.png").shape == (100, 128)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224.ms_in1k", "convnext_tiny", "resnet18.no_such_tag"])
def test_a_network_without_such_levels_or_weights_gets_one_line(photographs, name):
    with pytest.raises(UserError, match=rf"backbone '{name}': "):
        fit_to(recipe(str(photographs), "mlp", backbone=name, changes=SMALL), photographs / "run", "cpu")


def test_images_that_changed_since_the_fit_are_said(tmp_path):
    folder = labelled_folder(tmp_path / "f", grey)
    fit_to(recipe(str(folder), "mlp", backbone="scenes", changes=SMALL), tmp_path / "run", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_run(tmp_path / "run", device="cpu")
    photograph(9).save(folder / "1.jpg")
    with pytest.warns(UserWarning, match="holds other images than those that were fitted"):
        evaluate_run(tmp_path / "run", device="cpu")


@pytest.mark.filterwarnings("ignore:label_flow")
def test_a_fit_as_released_finds_as_many_clusters_as_asked_for(tmp_path):
    folder = labelled_folder(tmp_path / "f", grey)
    changes = SMALL | {"data.clusters": 3, "probe.label_flow": "as_released"}
    fitted = fit_to(recipe(str(folder), "mlp", backbone="scenes", changes=changes), tmp_path / "run", "cpu").segmenter
    assert len(fitted.cluster_probe.centres) == 3 and fitted.linear_probe.classify.out_features == 8
