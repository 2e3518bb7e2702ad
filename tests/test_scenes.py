"""The embedded data set is what its card says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cause_lite import datasets
from cause_lite.config import FitConfig
from cause_lite.datasets import scenes
from cause_lite.datasets.scenes import storage
from cause_lite.lab.recipes import recipe
from cause_lite.lab.runs import load_evaluation, load_training
from cause_lite.runtime.files import UserError


def test_a_view_depends_on_nothing_but_its_arguments():
    first, again, other = (scenes.render(0, "val", index) for index in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, other.image)


def test_shapes_and_labels(few_scenes):
    assert few_scenes.images.shape[1:] == (128, 128, 3) and few_scenes.images.dtype == np.uint8
    assert few_scenes.labels.shape[1:] == (128, 128)
    assert set(np.unique(few_scenes.labels)) <= set(range(len(scenes.FINE_CLASSES)))
    assert len(np.unique(few_scenes.labels)) >= 14


def test_the_taxonomy_has_two_levels():
    assert len(scenes.FINE_TO_COARSE) == len(scenes.FINE_CLASSES) >= 12
    assert set(scenes.FINE_TO_COARSE) == set(range(len(scenes.COARSE_CLASSES)))


def test_colour_does_not_name_a_class(few_scenes):
    """Mean colours of classes overlap: the spread inside a class exceeds the distance between the closest two."""
    means = {
        label: few_scenes.images[few_scenes.labels == label].astype(float).mean(0)
        for label in np.unique(few_scenes.labels)
    }
    spread = np.mean([few_scenes.images[few_scenes.labels == label].std() for label in means])
    values = np.stack(list(means.values()))
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert np.sort(distance[np.triu_indices(len(values), 1)])[0] < spread


def test_a_split_is_rendered_once_and_then_read(monkeypatch, tmp_path):
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    monkeypatch.setitem(scenes.SPLITS, "val", 3)
    first = datasets.load_split("scenes", "val")
    monkeypatch.setattr(scenes, "render", None)  # a second rendering would fail
    again = datasets.load_split("scenes-coarse", "val")
    assert np.array_equal(first.images, again.images) and len(again) == 3
    assert np.array_equal(np.array(scenes.FINE_TO_COARSE)[first.labels], again.labels)


@pytest.fixture
def three_views(monkeypatch, tmp_path):
    """A data set of three views a split, in a cache of its own."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    for split in scenes.SPLITS:
        monkeypatch.setitem(scenes.SPLITS, split, 3)


def test_the_recipe_trains_on_what_is_rendered(three_views):
    for split in (load_training(recipe("scenes", "mlp")), datasets.load_split("scenes", "train")):
        views = [scenes.render(0, "train", index) for index in range(3)]
        assert np.array_equal(split.images, [view.image for view in views])
        assert np.array_equal(split.labels, [view.labels for view in views]) and split.labels.dtype == np.int16


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", ["scenes", "scenes-coarse"])
def test_another_size_is_the_size_in_training_and_evaluation(three_views, name, size):
    config = recipe(name, "mlp", changes={"data.size": size, "data.resize": "bilinear"})
    train, val = load_training(config), load_evaluation(config)
    for split in (train, val):
        assert split.images.shape == (3, size, size, 3) and split.labels.shape == (3, size, size)
    whole = datasets.load_split(name, "train")
    image = Image.fromarray(whole.images[1]).resize((size, size), Image.Resampling.BILINEAR)
    assert np.array_equal(train.images[1], np.asarray(image))
    nearest = np.arange(size) * 128 // size
    if size > 128:
        assert np.array_equal(train.labels[1], whole.labels[1][nearest[:, None], nearest])
    apart = load_evaluation(config.replace({"data.eval_size": 128}))
    assert apart.images.shape == (3, 128, 128, 3)


@pytest.mark.parametrize("kept", [None, 0, 1000])
def test_damaged_scenes_are_rendered_again(three_views, tmp_path, kept):
    whole = np.array(datasets.load_split("scenes", "val").images)
    file = next(path for path in tmp_path.rglob("images.npy") if np.array_equal(np.load(path), whole))
    file.unlink() if kept is None else file.write_bytes(file.read_bytes()[:kept])
    assert np.array_equal(datasets.load_split("scenes", "val").images, whole)


def test_crops_are_refused_by_name(three_views):
    with pytest.raises(UserError, match=r"scenes: data\.crops must be 'none', not 'five'"):
        load_training(recipe("scenes", "mlp", changes={"data.crops": "five"}))
    with pytest.raises(UserError, match=r"data\.crops"):
        load_training(FitConfig().replace({"data.name": "scenes"}))


def test_the_cache_belongs_to_the_source(monkeypatch, tmp_path):
    """Every file that pixels depend on is in the key of the cache."""
    assert {path.name for path in storage.source_files()} >= {"surfaces.py", "sprites.py", "layout.py", "taxonomy.py"}
    before = storage.source_hash()
    changed = tmp_path / "sprites.py"
    changed.write_text("another drawing")
    files = [changed if path.name == "sprites.py" else path for path in storage.source_files()]
    monkeypatch.setattr(storage, "source_files", lambda: files)
    assert storage.source_hash() != before
