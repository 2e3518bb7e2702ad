"""A logistic regression that sees labels: what features, or a head's outputs, hold; it measures, and is no rival."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore, module_outputs
from cause_lite.methods.method import Predictor, Rows, Training, Views, by_affine, drawn, enlarged, register
from cause_lite.probe import IGNORED, patch_labels
from cause_lite.runtime.files import UserError
from cause_lite.runtime.settings import Settings

SAMPLE = 100_000  # labelled patches that it learns from, at most
TOLERANCE = 1e-7  # the largest entry of the gradient of the mean loss
ITERATIONS = 5_000  # of L-BFGS, at most
NEVER = -1e9  # the score of a class that no training patch has


class LogisticOptions(Settings):
    """What it reads: unit features of the backbone, or the outputs of the head of CAUSE's fit."""

    reads: Literal["features", "head"] = "features"


@register("logistic", LogisticOptions, needs=("labels",), supervised=True)
def learn(training: Training, options: LogisticOptions) -> Predictor:
    """Return the predictor of the classes; a class that no training patch has is never predicted."""
    if options.reads == "features":
        weight, bias = class_scores(training.features, training)
        return by_affine(weight, bias, unit=False)
    segmenter = training.fitted(training.config)
    with tempfile.TemporaryDirectory() as folder:
        outputs = module_outputs(segmenter.head, training.features, Path(folder), segmenter.codebook.dtype)
        weight, bias = class_scores(outputs, training)

    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        maps = segmenter.segment_features(views.plain, views.mirrored).permute(0, 2, 3, 1)
        return enlarged(maps.double() @ weight.T + bias, size)

    return predict


def class_scores(store: PatchStore, training: Training) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
    """Return weights and bias of each class's score, from vectors (N, P, D) and the training images' labels."""
    assert training.labels is not None
    vectors, targets = labelled_sample(store, training.labels, training.seed)
    scaler, regression = fit_logistic(vectors, targets)[:]
    weight = torch.zeros(training.classes, vectors.shape[1], dtype=torch.float64)
    bias = torch.full((training.classes,), NEVER, dtype=torch.float64)
    known, slopes = torch.from_numpy(regression.classes_), torch.from_numpy(regression.coef_ / scaler.scale_)
    offsets = torch.from_numpy(regression.intercept_) - slopes @ torch.from_numpy(scaler.mean_)
    if len(known) == 2:  # of two classes, the regression scores the second alone
        slopes, offsets = F.pad(slopes, (0, 0, 1, 0)), F.pad(offsets, (1, 0))
    weight[known], bias[known] = slopes, offsets
    return weight, bias


def labelled_sample(store: PatchStore, labels: Rows, seed: int) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Return at most 100,000 labelled patches of a store, and the class at the centre of each."""
    truth = patch_labels(labels[:], round(store.shape[1] ** 0.5))
    image, patch = (truth != IGNORED).nonzero(as_tuple=True)
    some = torch.randperm(len(image), generator=drawn(seed))[:SAMPLE]
    return store.at(image[some], patch[some]).double(), truth[image[some], patch[some]]


def fit_logistic(vectors: Float[Tensor, "n d"], targets: Int[Tensor, " n"]) -> Pipeline:
    """Fit a multinomial logistic regression (scikit-learn, L-BFGS, C = 1) on standardised vectors.

    Raises
    ------
    UserError
        When it does not converge.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=TOLERANCE, max_iter=ITERATIONS))
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(vectors.numpy(), targets.numpy())
        except ConvergenceWarning as error:
            message = f"logistic regression: no convergence to {TOLERANCE} within {ITERATIONS} iterations"
            raise UserError(f"{message}; standardise the vectors or take fewer classes") from error
