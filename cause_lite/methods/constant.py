"""One cluster for everything: the baseline that shows what pixel accuracy gives for no grouping at all."""

from __future__ import annotations

import torch
from torch import Tensor

from cause_lite.methods.method import NoOptions, Predictor, Training, Views, register


@register("constant")
def constant(training: Training, options: NoOptions) -> Predictor:
    """Return the predictor that puts each pixel into cluster 0."""

    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        return torch.ones(len(views.plain), 1, *size)

    return predict
