"""The dense CRF against its mean-field equations, computed with every pair of pixels of a tiny image."""

from __future__ import annotations

import sys

import joblib
import numpy as np
import pytest
import torch

from cause_lite.lab.crf import dense_crf, refine_batch
from cause_lite.runtime.files import UserError

SIDE = 24
AGREED = {1: 0.007, 3: 0.015}  # mean difference of marginals after so many iterations: pydensecrf's filter approximates
GAUSSIAN = {"compat": 3.0, "sxy": 1.0}
BILATERAL = {"compat": 4.0, "sxy": 67.0, "srgb": 3.0}


def tiny(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of 4 x 4 blocks of noisy colour, and the log-probabilities of three clusters, drawn at random."""
    rng = np.random.default_rng(seed)
    blocks = 40 * rng.integers(0, 2, (SIDE // 4, SIDE // 4, 3)).repeat(4, 0).repeat(4, 1)
    image = (blocks + rng.integers(0, 10, (SIDE, SIDE, 3))).astype(np.uint8)
    return image, np.log(rng.dirichlet(np.ones(3), (SIDE, SIDE))).transpose(2, 0, 1)


def kernel(places: np.ndarray) -> np.ndarray:
    """exp(-|f_i - f_j|^2 / 2) over features (M, d), scaled by the root of both row sums."""
    weight = np.exp(-0.5 * np.square(places[:, None] - places).sum(-1))
    root = np.sqrt(weight.sum(1))
    return weight / root / root[:, None]


def softmax(energy: np.ndarray) -> np.ndarray:
    odds = np.exp(energy - energy.max(0))
    return odds / odds.sum(0)


def mean_field(
    image: np.ndarray, log_probs: np.ndarray, iterations: int, gaussian: dict = GAUSSIAN, bilateral: dict = BILATERAL
) -> np.ndarray:
    """q_i <- softmax(log p_i + sum_j k_ij q_j), k the sum of both kernels times their compatibilities."""
    place = np.indices(image.shape[:2]).reshape(2, -1).T.astype(float)
    colour = image.reshape(-1, 3) / bilateral["srgb"]
    pairs = gaussian["compat"] * kernel(place / gaussian["sxy"])
    pairs += bilateral["compat"] * kernel(np.hstack([place / bilateral["sxy"], colour]))
    unary = log_probs.reshape(len(log_probs), -1)
    found = softmax(unary)
    for _ in range(iterations):
        found = softmax(unary + found @ pairs)
    return found.reshape(log_probs.shape)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iterations", AGREED)
def test_marginals_follow_the_mean_field_equations(seed, iterations):
    image, log_probs = tiny(seed)
    found = dense_crf(image, log_probs, iterations)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert difference(found, mean_field(image, log_probs, iterations)) < AGREED[iterations]
    assert difference(found, mean_field(image, log_probs, iterations + 1)) > AGREED[iterations]


@pytest.mark.parametrize(
    "term, change",
    [
        ("gaussian", {"compat": 4}),
        ("gaussian", {"sxy": 2}),
        ("bilateral", {"compat": 5}),
        ("bilateral", {"sxy": 20}),
        ("bilateral", {"srgb": 4}),
        ("gaussian", {"compat": 0}),
        ("bilateral", {"compat": 0}),
    ],
)
def test_other_constants_would_be_seen(term, change):
    """The agreement above is close enough to tell each constant from its neighbours."""
    image, log_probs = tiny(0)
    other = {term: {"gaussian": GAUSSIAN, "bilateral": BILATERAL}[term] | change}
    assert difference(dense_crf(image, log_probs, 1), mean_field(image, log_probs, 1, **other)) > AGREED[1]


def test_ten_iterations_are_the_default():
    image, log_probs = tiny(1)
    assert np.array_equal(dense_crf(image, log_probs), dense_crf(image, log_probs, 10))


def test_a_lone_pixel_yields_to_its_neighbours_but_not_across_an_edge():
    """Dark on the left and bright on the right; one pixel of each side claims to be of the other."""
    image = np.zeros((12, 16, 3), np.uint8)
    image[:, 8:] = 200
    truth = np.arange(16)[None].repeat(12, 0) // 8
    claimed = truth.copy()
    claimed[5, 3] = claimed[6, 7] = 1
    claimed[5, 12] = claimed[6, 8] = 0
    log_probs = np.log(np.where(np.arange(2)[:, None, None] == claimed, 0.7, 0.3))
    assert np.array_equal(dense_crf(image, log_probs).argmax(0), truth)


def test_a_batch_is_refined_image_by_image():
    """From cosines, by softmax of three times them."""
    images = np.stack([tiny(seed)[0] for seed in range(2)])
    cosines = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 0.5
    wanted = [
        dense_crf(image, torch.log_softmax(3 * each, 0).numpy()).argmax(0)
        for image, each in zip(images, cosines, strict=True)
    ]
    with joblib.parallel_config("sequential"):  # new processes would take longer than the work
        refined = refine_batch(cosines, images)
    assert np.array_equal(refined.numpy(), np.stack(wanted))
    assert not np.array_equal(wanted[0], wanted[1])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(UserError, match="needs pydensecrf2; install it"):
        dense_crf(*tiny(0))
