"""What a method is: it learns from stored features, and returns a function that scores the clusters of each pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_store import PatchStore
from cause_lite.config import FitConfig
from cause_lite.datasets.images import LazyRows
from cause_lite.runtime.files import UserError
from cause_lite.runtime.settings import Settings
from cause_lite.segmenter import Segmenter

Needs = Literal["labels", "pictures"]
Rows = np.ndarray | LazyRows


@dataclass(frozen=True)
class Training:
    """What a method may look at. Labels and pictures are there only for a method that declares that it needs them.

    Parameters
    ----------
    features
        Patch features (N, P, D) of the training images.
    config
        The settings of the data set's recipe, the seed among them.
    classes
        How many classes the data set has: as many clusters are to be found.
    fitted
        Returns the CAUSE segmenter of some settings, from the cache where it is there.
    labels, pictures
        Label maps (N, H, W), -1 where unlabelled, and RGB images (N, H, W, 3); None where they are not needed.
    """

    features: PatchStore
    config: FitConfig
    classes: int
    fitted: Callable[[FitConfig], Segmenter]
    labels: Rows | None = None
    pictures: Rows | None = None

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self.config.seed


@dataclass(frozen=True)
class Views:
    """Some images as a prediction sees them: features (B, P, D), those of the mirror images, and RGB (B, H, W, 3)."""

    plain: Tensor
    mirrored: Tensor
    pictures: np.ndarray

    def mean(self, unit: bool = True) -> Float[Tensor, "b h w d"]:
        """Return the mean of both views on the grid of patches, of vectors of length 1 where `unit`, in double."""
        side = round(self.plain.shape[1] ** 0.5)
        views = [view.double().unflatten(1, (side, side)) for view in (self.plain, self.mirrored)]
        if unit:
            views = [F.normalize(view, dim=-1) for view in views]
        return (views[0] + views[1].flip(2)) / 2


Predictor = Callable[[Views, tuple[int, int]], Tensor]  # images and a size -> scores (B, K, H, W), the largest wins


@dataclass(frozen=True)
class Method:
    """A method by name; `learn` takes what it may look at and its options, and returns its predictor.

    `supervised` methods predict classes, which are not matched. `options` is the model that checks a method's options.
    """

    name: str
    learn: Callable[..., Predictor]
    options: type[Settings]
    needs: frozenset[Needs] = frozenset()
    supervised: bool = False

    def __call__(self, training: Training, options: Mapping[str, object] | None = None) -> Predictor:
        """Return the predictor; raise UserError for an option that the method does not have."""
        try:
            checked = self.options.model_validate(dict(options or {}), strict=False)
        except ValueError as error:
            raise UserError(f"method {self.name}: {' '.join(str(error).split())[:300]}") from error
        return self.learn(training, checked)


METHODS: dict[str, Method] = {}


class NoOptions(Settings):
    """The options of a method that has none."""


def register(
    name: str, options: type[Settings] = NoOptions, needs: tuple[Needs, ...] = (), supervised: bool = False
) -> Callable[[Callable[..., Predictor]], Callable[..., Predictor]]:
    """Return a decorator that registers a function (training, options) -> predictor as the method of a name."""

    def keep(learn: Callable[..., Predictor]) -> Callable[..., Predictor]:
        METHODS[name] = Method(name, learn, options, frozenset(needs), supervised)
        return learn

    return keep


def enlarged(maps: Float[Tensor, "b h w d"], size: tuple[int, int]) -> Float[Tensor, "b d x y"]:
    """Return maps scaled up bilinearly."""
    return F.interpolate(maps.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)


def by_affine(weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"] | None = None, unit: bool = True) -> Predictor:
    """Return the predictor of affine scores of the mean of both views.

    Bilinear weights add up to 1, so patches are scored before they are enlarged: it is the same, and faster.
    """

    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        scores = views.mean(unit) @ weight.T
        return enlarged(scores if bias is None else scores + bias, size)

    return predict


def drawn(seed: int) -> torch.Generator:
    """Return a generator of the draws of a seed."""
    return torch.Generator().manual_seed(seed)
