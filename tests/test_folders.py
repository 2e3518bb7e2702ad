"""A folder of one's own images: fitted with no labels, with a contact sheet; bad files are named or left out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

import cause_lite
from cause_lite import checkpoints, datasets
from cause_lite.checkpoints import hub
from cause_lite.checkpoints.export import export
from cause_lite.checkpoints.segmenter_folder import shape_of, write_shape
from cause_lite.datasets import scenes
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import fit_to, load_training
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


def test_labels_of_another_size_or_value(photographs):
    (photographs / "labels").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        datasets.load_split(str(photographs / "labels"), "train", 64)
    for image in datasets.folder_files(photographs):
        with Image.open(image) as opened:
            ids = np.full((opened.height, opened.width), 9, dtype=np.uint8)
        ids[:20] = 1
        Image.fromarray(ids).save(photographs / "labels" / f"{image.stem}.png")
    split = datasets.load_split(str(photographs), "train", 64, clusters=5)
    assert set(np.unique(split.labels[:])) == {-1, 1}  # 9 is no class
    Image.new("L", (5, 5)).save(photographs / "labels" / "a.png")
    kept, wrong = datasets.without_bad(split)
    assert len(kept) == len(split) - 1 and "its size is not that of" in wrong[0]
    (photographs / "labels" / "a.png").unlink()
    with pytest.raises(UserError, match=r"labels/a\.png: is missing"):
        datasets.load_split(str(photographs), "train", 64)


def test_a_folder_of_no_use_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        datasets.load_split(str(tmp_path / "empty"), "train", 64)
    (tmp_path / "empty" / "a.png").write_text("none")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        datasets.without_bad(datasets.load_split(str(tmp_path / "empty"), "train", 64))


@pytest.fixture
def run(photographs, tmp_path):
    fit_to(recipe(str(photographs), "tr", backbone="scenes", changes=SMALL), tmp_path / "run", "cpu")
    return tmp_path / "run"


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
        ({"dim": "wide"}, "`dim` is 'wide'"), ({"num_concepts": 10**9}, "`num_concepts` is 1000000000"),
        ({"head": "cnn"}, "`head` is 'cnn'"), ({"size": 0}, "`size` is 0"), ({"classes": [1]}, "`classes`"),
        ({"num_classes": True}, "`num_classes` is True"),
    ],
)  # fmt: skip
def test_a_shape_that_lies_is_refused(run, change, named):
    shape = read_json(run / "segmenter.json")
    write_shape(run, shape | change)
    with pytest.raises(UserError, match=named):
        checkpoints.load(run)


def test_nothing_is_said_where_nothing_is_wrong(photographs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_training(recipe(str(photographs), "mlp", changes=SMALL | {"data.skip_bad": True}))) == 7
