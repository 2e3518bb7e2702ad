"""The embedded data set is what its card says."""

from __future__ import annotations

import numpy as np

from cause_lite import datasets
from cause_lite.datasets import scenes


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
