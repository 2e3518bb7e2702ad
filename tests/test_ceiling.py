"""Baselines find what is there, predict as their library does, and depend on their seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cause_lite.backbones.feature_store import PatchStore, cached_features
from cause_lite.lab import baselines
from cause_lite.lab.agreement import agreement
from cause_lite.probe import IGNORED
from cause_lite.runtime.files import UserError

CONFUSIONS = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 9)).filter(
    lambda counts: counts.sum() > 1
)


@given(CONFUSIONS)
def test_agreement_of_a_confusion_is_that_of_its_pixels(confusion):
    cluster, label = (np.repeat(index.ravel(), confusion.ravel()) for index in np.indices(confusion.shape))
    found = agreement(confusion)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(label, cluster), abs=1e-9)
    assert found["ari"] == pytest.approx(adjusted_rand_score(label, cluster), abs=1e-9)
    commonest = sum(np.bincount(label[cluster == one]).max() for one in np.unique(cluster))
    assert found["many_to_one"] == pytest.approx(100 * commonest / len(label))


@given(CONFUSIONS)
def test_splitting_a_cluster_never_lowers_many_to_one_accuracy(confusion):
    half = confusion // 2
    split = np.concatenate([half, confusion - half])
    assert agreement(split)["many_to_one"] >= agreement(confusion)["many_to_one"] - 1e-9


@pytest.fixture
def blobs(tmp_path):
    """Three well separated directions, one a row of patches: a store (8, 9, 4) and its label maps (8, 6, 6)."""
    rng = np.random.default_rng(0)
    rows = np.arange(9) // 3
    vectors = torch.from_numpy((np.eye(4)[rows] * 5 + rng.normal(0, 0.1, (8, 9, 4))).astype(np.float32))
    labels = np.repeat(np.repeat(rows.reshape(3, 3), 2, 0), 2, 1)[None].repeat(8, 0).astype(np.int16)
    store = PatchStore(tmp_path / "blobs", vectors.shape, torch.float32, lambda which: vectors[which], "Blobs")
    mirrored = vectors.view(8, 3, 3, 4).flip(2).reshape(8, 9, 4)
    other = PatchStore(tmp_path / "mirrored", vectors.shape, torch.float32, lambda which: mirrored[which], "Blobs")
    return store, baselines.TestFeatures(store, other), labels


@pytest.mark.parametrize("score", [baselines.score_feature_kmeans, baselines.score_full_kmeans])
def test_kmeans_finds_separated_groups(blobs, score):
    store, seen, labels = blobs
    assert score(store, seen, labels, 3, 0).compute()["pacc"] > 95


def test_logistic_regression_finds_classes_that_clusters_are_not(blobs):
    """With labels by the column, which the features do not hold, it does no better than chance."""
    store, seen, labels = blobs
    assert baselines.score_logistic(store, labels, seen.patches, labels, 3, 0).unmatched()["pacc"] > 95
    columns = labels.transpose(0, 2, 1)
    assert baselines.score_logistic(store, columns, seen.patches, columns, 3, 0).unmatched()["pacc"] < 60


def test_the_folded_prediction_is_the_librarys(blobs):
    store, seen, labels = blobs
    scored = baselines.score_logistic(store, labels, seen.patches, labels, 3, 0)
    model = baselines.fit_logistic(*baselines.labelled_sample(store, labels, 0))
    pixels = baselines.enlarged(seen.patches(slice(None)), labels.shape[1:]).flatten(0, 2)
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (model.predict(pixels.numpy()), labels.ravel()), 1)
    assert np.array_equal(scored.confusion.numpy(), counts)


def test_a_sample_holds_labelled_patches_alone(blobs):
    store, _, labels = blobs
    some = labels.copy()
    some[1:] = IGNORED
    vectors, targets = baselines.labelled_sample(store, some, 0)
    assert len(vectors) == 9 and (targets != IGNORED).all()


def test_a_regression_that_does_not_converge_is_refused(blobs, monkeypatch):
    store, _, labels = blobs
    monkeypatch.setattr(baselines, "ITERATIONS", 1)
    with pytest.raises(UserError, match="no convergence"):
        baselines.fit_logistic(*baselines.labelled_sample(store, labels, 0))


def test_the_regression_does_not_depend_on_what_was_drawn_before(few_scenes, small_backbone):
    features, labels = cached_features(small_backbone, few_scenes.images, "Features"), few_scenes.labels
    seen, found = baselines.TestFeatures(features, features), []
    for state in (1, 2):
        torch.manual_seed(state)
        scored = baselines.score_logistic(features, labels, seen.patches, labels, len(few_scenes.classes), 0)
        found.append(scored.confusion)
    assert torch.equal(*found)
