"""STEGO (Hamilton et al. 2022): codes whose cosines follow those of features, between patches of three kinds of pairs.

A pair's patches attract where the cosine of their features lies above a shift b, and repel below. The shifts decide
everything, and published ones belong to their backbone. The author's advice needs no label: look at the cosines of
codes within an image, with a neighbour and with any image, and balance their means. Which means to aim at is our
choice, made before any score; the paper could not be read for it. Here each shift is the quantile q of its centred
feature cosines over training images. While the head learns, q rises where the mean cosine of codes lies above its aim,
and falls below.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cause_lite.backbones.feature_pass import BATCH
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.loop import Session, batch_size
from cause_lite.methods import training_loop as rival
from cause_lite.methods.method import Predictor, Training, register
from cause_lite.runtime.settings import AboveZero, Cosine, Positive, Rate, Settings, Share

Points = tuple[Tensor, Tensor]  # features (B, Q, D) and codes (B, Q, R) of some patches of each image
NEIGHBOURS, NEGATIVES = 7, 5  # images that may be a positive; draws of random images a step


class StegoOptions(Settings):
    """How the head learns; what is not about shifts, points and steps is as released.

    Attributes
    ----------
    balance
        Mean cosines of codes within an image, with a neighbour and with a random image, which the shifts aim at.
    weights, quantiles
        Of the three terms; of centred feature cosines, where their shifts begin.
    gain
        How far a quantile moves in a step, for a mean cosine that is off by 1; 0: the shifts stay.
    width, dropout, learning_rate, steps, points
        Of the code; of channels; of Adam; of training, in whole epochs; patches of an image that a step looks at.
    """

    balance: tuple[Cosine, Cosine, Cosine] = (0.3, 0.15, 0.0)
    weights: tuple[Rate, Rate, Rate] = (0.67, 0.25, 0.63)
    quantiles: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
    gain: Rate = 0.05
    width: Positive = 70
    dropout: Share = 0.1
    learning_rate: AboveZero = 5e-4
    steps: Positive = rival.STEPS
    points: Positive = 121


def pair_loss(
    first: Points, second: Points, shift: float | Tensor, low: float = 0.0, high: float | None = None
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q q"]]:
    """Return -clamp(cd, low, high) (fd - shift) of each pair; cd are cosines of codes, returned too, fd of features."""
    with torch.no_grad():
        fd = rival.centred_cosines(first[0], second[0])
    cd = F.normalize(first[1], dim=-1, eps=1e-10) @ F.normalize(second[1], dim=-1, eps=1e-10).mT
    return -cd.clamp(low, high) * (fd - shift), cd


def nearest_images(store: PatchStore, count: int = NEIGHBOURS) -> Int[Tensor, "n k"]:
    """Return each image's nearest others, nearest first, by the cosine of their mean patches."""
    parts = torch.arange(len(store)).split(BATCH)
    means = F.normalize(torch.cat([store[part].double().mean(1) for part in parts]), dim=-1)
    cosines = (means @ means.T).fill_diagonal_(-2)
    return cosines.topk(min(count, len(store) - 1), dim=1).indices


@dataclass
class Balance:
    """The three shifts: quantiles of tabled feature cosines (3, T), which move towards the balance of codes."""

    table: Float[Tensor, "3 t"]
    quantiles: Float[Tensor, " 3"]
    options: StegoOptions

    def shifts(self) -> Float[Tensor, " 3"]:
        """Return the shift of each term."""
        place = (self.quantiles * (self.table.shape[1] - 1)).round().long()
        return self.table.gather(1, place[:, None])[:, 0]

    def move(self, means: Float[Tensor, " 3"]) -> None:
        """Raise the quantile of each term whose codes' mean cosine is above the balance; lower the others."""
        off = means - torch.tensor(self.options.balance).to(means)
        self.quantiles = (self.quantiles + self.options.gain * off).clamp(0, 1)


class StegoTraining:
    """What a step draws and compares. The drawn points are centres of patches, so the head sees these patches alone."""

    def __init__(self, training: Training, options: StegoOptions, session: Session) -> None:
        self.features, self.options, self.session = training.features, options, session
        self.nearest = nearest_images(training.features)
        width = training.features.shape[2]
        self.head = session.build(lambda: rival.two_branch(width, options.width, options.dropout))
        start = torch.tensor(options.quantiles, dtype=session.dtype, device=session.device)
        self.balance = Balance(self.cosines(), start, options)

    def seen(self, batch: Tensor) -> Points:
        """Return features, with a dropout of their own, and codes of random patches of images (B, P, D)."""
        some = rival.some_patches(batch, self.options.points, self.session.generator)
        some = some.to(self.session.device, self.session.dtype)
        return self.head.dropout(some), self.head(some)

    def terms(self, numbers: Tensor, batch: Tensor) -> list[list[tuple[Points, Points]]]:
        """Return what is compared: images with themselves; each with a neighbour; some draws of random pairs."""
        nearest, generator = self.nearest[numbers], self.session.generator
        pick = torch.randint(nearest.shape[1], (len(numbers), 1), generator=generator)
        here, there = self.seen(batch), self.seen(self.features[nearest.gather(1, pick)[:, 0]])
        orders = [rival.partners(len(numbers), generator) for _ in range(NEGATIVES)]
        return [[(here, here)], [(here, there)], [(here, (here[0][order], here[1][order])) for order in orders]]

    @torch.no_grad()
    def cosines(self) -> Float[Tensor, "3 t"]:
        """Return 1,001 quantiles of each term's centred feature cosines, in a batch of training images."""
        order = torch.randperm(len(self.features), generator=self.session.generator)
        numbers = order[: batch_size(self.session.config)]
        terms = self.terms(numbers, self.features[numbers])
        found = [rival.centred_cosines(first[0], second[0]).flatten().sort().values for (first, second), *_ in terms]
        return torch.stack([cosines[torch.linspace(0, len(cosines) - 1, 1001).round().long()] for cosines in found])

    def loss_of(self, numbers: Tensor, batch: Tensor) -> Tensor:
        """Return the weighted sum of the three terms' mean losses; let the shifts follow the mean cosines."""
        losses, means = [], []
        shifts = self.balance.shifts()
        for weight, shift, pairs in zip(self.options.weights, shifts, self.terms(numbers, batch), strict=True):
            found = [pair_loss(*pair, shift) for pair in pairs]
            losses.append(weight * torch.stack([loss.mean() for loss, _ in found]).mean())
            means.append(torch.stack([cosines.detach().mean() for _, cosines in found]).mean())
        self.balance.move(torch.stack(means))
        return torch.stack(losses).sum()


@register("stego", StegoOptions)
def learn(training: Training, options: StegoOptions) -> Predictor:
    """Train the head on all three terms, and read its codes by cosine clusters."""
    with rival.session_of(training) as session:
        fit = StegoTraining(training, options, session)
        optimizer = torch.optim.Adam(fit.head.parameters(), lr=options.learning_rate)
        rival.learn_by_adam("STEGO", training, session, options.steps, [optimizer], [fit.head], fit.loss_of)
        return rival.read_by_kmeans(fit.head, training)
