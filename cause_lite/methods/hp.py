"""HP, Hidden Positives (Seong et al. 2023): contrast with patches that are nearer than a pool of random ones.

Patch j is a positive of i where it is more similar to i than all M vectors of a pool are, or i to j: a quantile of
training cosines, which a random patch passes with probability 1 / (M + 1). Similar are frozen features, and outputs of
a slow copy of the head, whose positives gain weight in training. A second loss contrasts mixtures of neighbours.

Some of it is not in stored features. Their cosines stand in for a transformer's attention; there is no view in other
colours, and all pairs are compared, as in the release on Potsdam. A step looks at one patch of each cell, as CAUSE
does; neighbours are those in the grid of cells. The pool leaves out an anchor's own image, rare there and not here.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.head import ema_update
from cause_lite.loop import Session, draw_selection
from cause_lite.methods import training_loop as rival
from cause_lite.methods.method import Predictor, Training, register
from cause_lite.runtime.settings import AboveZero, Positive, Rate, Settings, Share

BASE, KEPT, CLIP = 0.07, 28.0, 10.0  # what divides the temperature; of the neighbours' weights; of the head's gradient


class HpOptions(Settings):
    """How the head learns.

    Attributes
    ----------
    by_chance, renewed
        Patches of a step for each vector of the pool, so many are positives by chance; steps of the slow head's pool.
    temperature, decay, warmup
        Of the contrast; of the slow head; share of the steps before which the slow head's positives have no weight.
    width, dropout, learning_rate, weight_decay, steps
        Of the code; of channels; of AdamW; of training, in whole epochs.
    """

    by_chance: Positive = 32
    temperature: AboveZero = 0.6
    decay: Share = 0.99
    warmup: Share = 0.05
    renewed: Positive = 20
    width: Positive = 256
    dropout: Share = 0.1
    learning_rate: AboveZero = 5e-4
    weight_decay: Rate = 0.1
    steps: Positive = rival.STEPS


def neighbour_weights(similar: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    """Return how much of each patch in the 3 x 3 window around it, of a square grid, a patch mixes in.

    Rows are cut to their quantiles 0.1 and 0.9, made a softmax times 28, 0 below their mean, over the window's size.
    """
    low, high = similar.quantile(0.1, -1, keepdim=True), similar.quantile(0.9, -1, keepdim=True)
    weights = KEPT * similar.clamp(low, high).softmax(-1)
    place = torch.cartesian_prod(*[torch.arange(round(similar.shape[1] ** 0.5))] * 2)
    near = ((place[:, None] - place).abs().amax(-1) <= 1).to(similar)
    return weights * (weights >= weights.mean(-1, keepdim=True)) * near / near.sum(-1, keepdim=True)


def positives(vectors: Float[Tensor, "n d"], pool: Float[Tensor, "m d"], own: Tensor | None = None) -> Tensor:
    """Return which pairs of unit vectors (n, n) are nearer than the pool, less what is `own` (n, m), is to either."""
    cosines, pooled = vectors @ vectors.T, vectors @ pool.T
    found = cosines > (pooled if own is None else pooled.masked_fill(own, -1)).amax(1, keepdim=True)
    return (found | found.T).fill_diagonal_(False)


def contrast(
    z: Float[Tensor, "n j"], agnostic: Tensor, specific: Tensor, among: Tensor, images: int, weight: float, tau: float
) -> Float[Tensor, ""]:
    """Return the mean over images of the loss of unit codes, whose rows go image by image.

    -(tau / 0.07) sum_ij w_ij (z_i z_j / tau - log sum_k exp(z_i z_k / tau)) / sum_ij w_ij with w = agnostic + weight
    specific adds up patches i with an agnostic positive, 0 without any; pairs i, k are agnostic or `among` those given.
    """
    pull = (agnostic + weight * specific.to(z)) * agnostic.any(1, keepdim=True)
    against, cosines = (among | agnostic).fill_diagonal_(False), z @ z.T / tau
    against = against | ~against.any(1, keepdim=True)  # a row without any has no pull, and stays finite
    spread, count = cosines.masked_fill(~against, -torch.inf).logsumexp(1), pull.sum(1)
    total, pairs = (rows.view(images, -1).sum(1) for rows in ((pull * cosines).sum(1) - count * spread, count))
    return -tau / BASE * (total / pairs.clamp(min=1e-9)).mean()


class HiddenPositives(nn.Module):
    """Head, its slow copy, and the projection of training."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.head, self.project = rival.two_branch(dim, width, dropout), nn.Linear(width, width)
        self.slow, self.dropout = copy.deepcopy(self.head).requires_grad_(False), rival.ChannelDropout(dropout)

    def forward(self, batch: Float[Tensor, "b n d"], similar: Float[Tensor, "b n n"]) -> tuple[Tensor, ...]:
        """Return unit rows (B N, *): projected codes, projected mixtures, features and slow codes."""
        code, features, slow = self.head(batch), self.dropout(batch), self.dropout(self.slow(batch))
        rows = self.project(code), self.project(self.dropout(neighbour_weights(similar) @ code)), features, slow
        return tuple(F.normalize(part.flatten(0, 1), dim=-1) for part in rows)


class HpTraining:
    """What a step draws, both pools, and the loss."""

    def __init__(self, training: Training, options: HpOptions, session: Session) -> None:
        self.features, self.options, self.session, self.step = training.features, options, session, 0
        self.pools: list[tuple[Tensor, Tensor]] = []  # of features and of slow codes, with the numbers of their images
        self.model = session.build(lambda: HiddenPositives(training.features.shape[2], options.width, options.dropout))

    @torch.no_grad()
    def pool(self, size: int, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return what a module and dropout make of a patch of each of so many images (M, *), and their numbers."""
        images = torch.randperm(len(self.features), generator=self.session.generator).repeat(size)[:size]
        patch = torch.randint(self.features.shape[1], (size,), generator=self.session.generator)
        vectors = self.features.at(images, patch)[:, None].to(self.session.device, self.session.dtype)
        return F.normalize(self.model.dropout(module(vectors))[:, 0], dim=-1), images

    def loss_of(self, numbers: Tensor, batch: Tensor) -> Tensor:
        """Return the loss of one patch of each cell; the slow head then moves towards the head as it is."""
        options, model = self.options, self.model
        seen = draw_selection(batch, self.session)(batch)
        unit, image = F.normalize(seen, dim=-1), numbers.repeat_interleave(seen.shape[1])[:, None]
        z, mixed, *compared_by = model(seen, unit @ unit.mT)
        if self.step % options.renewed == 0:
            size = max(1, len(z) // options.by_chance)
            of_features = self.pools[:1] or [self.pool(size, nn.Identity())]  # which do not change
            self.pools = [*of_features, self.pool(size, model.slow)]
        pairs = zip(compared_by, self.pools, strict=True)
        agnostic, specific = (positives(vectors, pool, (image == of).to(z.device)) for vectors, (pool, of) in pairs)
        weight = min(1.0, max(0.0, (self.step / options.steps - options.warmup) / max(1 - options.warmup, 1e-9)))
        given = agnostic, specific, torch.ones_like(agnostic), len(batch), weight, options.temperature
        loss = (contrast(z, *given) + contrast(mixed, *given)) / 2
        ema_update(model.slow, model.head, options.decay)
        self.step += 1
        return loss


@register("hp", HpOptions)
def learn(training: Training, options: HpOptions) -> Predictor:
    """Train head and projection, and read the head's codes by cosine clusters."""
    with rival.session_of(training) as session:
        fit = HpTraining(training, options, session)
        head, project, rate = fit.model.head, fit.model.project, options.learning_rate
        first = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=options.weight_decay)
        adams, modules = [first, torch.optim.Adam(project.parameters(), lr=rate)], [head, project]
        rival.learn_by_adam("HP", training, session, options.steps, adams, modules, fit.loss_of, clip=CLIP)
        return rival.read_by_kmeans(head, training)
