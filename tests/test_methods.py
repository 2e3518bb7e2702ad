"""What is compared: each method finds what it can find, looks at what it declares, and repeats by its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quick_config
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.methods import METHODS, Training, Views, find
from cause_lite.methods.as_released import ReleasedOptions, relabelled
from cause_lite.runtime.files import UserError

IMAGES, SIDE, WIDTH, CLASSES = 12, 6, 5, 3
GROUPINGS = [
    {},
    {"grouping": "minibatch"},
    {"grouping": "mixture", "starts": 2},
    {"grouping": "agglomerative"},
    {"channels": 3},
    {"channels": 3, "whiten": True},
    {"context": 1},
]


@pytest.fixture
def toy(tmp_path) -> tuple[PatchStore, Tensor]:
    """Features of three directions with noise, in vertical stripes, and the direction of each patch."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.arange(SIDE) // 2).expand(IMAGES, SIDE, SIDE)
    truth = torch.stack([one.roll(2 * number, 1) for number, one in enumerate(truth)])
    vectors = torch.eye(CLASSES, WIDTH)[truth] + 0.05 * torch.randn(IMAGES, SIDE, SIDE, WIDTH, generator=generator)
    vectors = vectors.flatten(1, 2) * (1 + torch.arange(IMAGES).view(-1, 1, 1))  # of all lengths
    store = PatchStore(tmp_path / "v", tuple(vectors.shape), torch.float32, vectors.__getitem__, "v", IMAGES)
    return store, truth


def training(store: PatchStore, seed: int = 0, **seen: object) -> Training:
    config = quick_config({"seed": seed})
    return Training(store, config, CLASSES, lambda config: pytest.fail("no fit is asked for"), **seen)


def predicted(store: PatchStore, predict: object) -> Tensor:
    mirrored = store[:].unflatten(1, (SIDE, SIDE)).flip(2).flatten(1, 2)
    views = Views(store[:], mirrored, np.zeros((IMAGES, SIDE, SIDE, 3), np.uint8))
    return predict(views, (SIDE, SIDE))


@pytest.mark.parametrize("options", GROUPINGS, ids=str)
def test_k_means_of_every_kind_finds_directions(toy, options):
    store, truth = toy
    clusters = predicted(store, find("kmeans")(training(store), options)).argmax(1)
    inner = truth == truth.roll(1, 2)  # means over neighbours mix what lies at an edge
    inner &= truth == truth.roll(-1, 2)
    at = inner if options.get("context") else torch.ones_like(inner)
    pairs = torch.unique(torch.stack([clusters[at], truth[at]]), dim=1)
    assert len(pairs[0].unique()) == len(pairs[1].unique()) == pairs.shape[1]  # one to one


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_k_means_finds_as_many_clusters_as_it_is_asked_for(toy, clusters):
    scores = predicted(toy[0], find("kmeans")(training(toy[0]), {"clusters": clusters}))
    assert scores.shape == (IMAGES, clusters, SIDE, SIDE)


def test_one_cluster_for_everything(toy):
    assert predicted(toy[0], find("constant")(training(toy[0]))).shape[1] == 1


def test_a_regression_on_all_labels_is_right(toy):
    store, truth = toy
    assert find("logistic").supervised
    labels = truth.numpy().astype(np.int16)
    scores = predicted(store, find("logistic")(training(store, labels=labels)))
    assert (scores.argmax(1) == truth).float().mean() > 0.98


def test_a_class_without_a_label_is_never_predicted(toy):
    store, truth = toy
    labels = np.where(truth.numpy() == 1, -1, truth.numpy()).astype(np.int16)
    assert 1 not in predicted(store, find("logistic")(training(store, labels=labels))).argmax(1)


def test_colour_k_means_reads_pictures_alone(toy):
    pictures = np.zeros((IMAGES, 24, 24, 3), np.uint8)
    pictures[:, :8], pictures[:, 8:16], pictures[:, 16:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    predict = find("colour_kmeans")(training(toy[0], pictures=pictures))
    views = Views(torch.empty(0), torch.empty(0), pictures)
    assert len(np.unique(predict(views, (24, 24)).argmax(1)[0].numpy())) == CLASSES


def test_a_seed_repeats_and_another_differs(toy):
    some = [predicted(toy[0], find("kmeans")(training(toy[0], seed), {"starts": 1})) for seed in (0, 0, 1)]
    assert torch.equal(some[0], some[1]) and not torch.equal(some[0], some[2])


def test_labels_are_for_those_that_declare_them():
    assert {name for name, method in METHODS.items() if "labels" in method.needs} == {"as_released", "logistic"}


def test_what_is_not_known_is_named(toy):
    with pytest.raises(UserError, match=r"no method named 'k-means'; must be one of .*kmeans"):
        find("k-means")
    with pytest.raises(UserError, match=r"method kmeans: .*cluster"):
        find("kmeans")(training(toy[0]), {"cluster": 3})


@pytest.mark.parametrize("how", ["other images", "shuffled pixels"])
def test_labels_are_given_to_other_images_or_pixels(how):
    labels = np.random.default_rng(0).integers(0, 5, (9, 4, 4))
    found = relabelled(labels, ReleasedOptions(labels=how), np.random.default_rng(1))
    assert not np.array_equal(found, labels)
    assert np.array_equal(np.sort(found, axis=None), np.sort(labels, axis=None))
    same = [any(np.array_equal(one, other) for other in labels) for one in found]
    assert all(same) is (how == "other images")


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_share_of_the_images_keeps_its_labels(share):
    labels = np.ones((10, 2, 2), np.int16)
    found = relabelled(labels, ReleasedOptions(share=share), np.random.default_rng(0))
    assert (found[:, 0, 0] == 1).sum() == max(1, round(10 * share)) and set(np.unique(found)) == {-1, 1}


def test_whitened_channels_have_deviation_one(toy):
    from cause_lite.methods.kmeans import KMeansOptions, projection

    vectors = F.normalize(toy[0][:].flatten(0, 1).double(), dim=-1)
    found = projection(vectors, KMeansOptions(channels=3, whiten=True))(vectors)
    torch.testing.assert_close(found.std(0, correction=0), torch.ones(3).double(), rtol=1e-6, atol=1e-6)


def test_a_regression_that_does_not_converge_is_refused(toy, monkeypatch):
    monkeypatch.setattr("cause_lite.methods.logistic.ITERATIONS", 1)
    labels = np.random.default_rng(0).integers(0, CLASSES, (IMAGES, SIDE, SIDE)).astype(np.int16)
    with pytest.raises(UserError, match="no convergence"):
        find("logistic")(training(toy[0], labels=labels))
