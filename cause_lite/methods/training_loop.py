"""What rivals share: heads that learn by Adam from stored features, and the clusters that read them.

One rule holds for every rival, fixed before any score. Thresholds and shifts are quantiles of cosines of the *training*
features, as those of a paper belong to its backbone. Published training passes 5 to 30 times over 15,000 crops or
more; here `STEPS` steps pass at least as often over some hundred images. The last step counts, both mirror views are
averaged, and there are as many clusters as classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.backbones.kmeans import SAMPLE, kmeans
from cause_lite.head import Dropout, TwoBranch
from cause_lite.loop import Session, batch_size, optimise
from cause_lite.methods.method import Predictor, Training, Views, drawn, enlarged
from cause_lite.runtime.device import choose_device, deterministic, seeded
from cause_lite.runtime.learner import Learner

STEPS = 1000  # of every rival, by rule


class ChannelDropout(Dropout):
    """Dropout of whole channels: one draw for each image and channel of (B, P, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, in training with a share `p` of each image's channels at 0 and the rest scaled up."""
        return x * super().forward(x.new_ones(len(x), 1, x.shape[-1])) if self.training else x


def two_branch(dim: int, width: int, dropout: float, activation: nn.Module | None = None) -> TwoBranch:
    """Return STEGO's head with channel dropout, (B, P, D) -> (B, P, R), which others changed the activation of."""
    head = TwoBranch(dim, width, dropout)
    head.dropout = ChannelDropout(dropout)
    if activation is not None:
        head.nonlinear[1] = activation
    return head


@contextmanager
def session_of(training: Training) -> Iterator[Session]:
    """Yield the settings, device and generator of a rival's draws; weights and dropout are seeded within the block."""
    device = choose_device("auto", training.config.optimisation.precision)
    with seeded(training.seed) as generator, deterministic(device):
        yield Session(training.config, generator, device)


def learn_by_adam(
    name: str,
    training: Training,
    session: Session,
    steps: int,
    optimizers: Sequence[torch.optim.Optimizer],
    modules: Sequence[nn.Module],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    after_step: Callable[[], None] = lambda: None,
    clip: float | None = None,
) -> list[float]:
    """Take at least `steps` steps, in whole epochs, down the loss of image numbers (b,) and features (b, P, D).

    The gradient of the first module is cut to the norm `clip`; the first optimiser must hold it. The losses are
    returned.
    """
    count = len(training.features)
    epochs = -(-steps // (count // min(count, batch_size(session.config))))
    learner = Learner(nn.ModuleList(modules), optimizers, modules[0], clip)
    return optimise(name, training.features, epochs, learner, loss_of, session, after_step)


def some_patches(batch: Float[Tensor, "b p d"], most: int, generator: torch.Generator) -> Float[Tensor, "b q d"]:
    """Return at most so many different patches of each image, drawn at random."""
    if batch.shape[1] <= most:
        return batch
    drawn = (
        torch.rand(batch.shape[:2], generator=generator).argsort(dim=1, stable=True)[:, :most, None].to(batch.device)
    )
    return batch.gather(1, drawn.expand(-1, -1, batch.shape[2]))


def partners(count: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Draw another image for each of a batch: a random order in which an image that stays in place moves on by one."""
    return apart(torch.randperm(count, generator=generator))


def apart(order: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return an order whose fixed points moved on by one; an image may then occur twice, as released."""
    return (order + (order == torch.arange(len(order)))) % len(order)


def centred_cosines(f: Float[Tensor, "b p d"], g: Float[Tensor, "b q d"]) -> Float[Tensor, "b p q"]:
    """Return all cosines of two sets of patches less the mean of their row, plus the mean over the whole batch."""
    cosines = F.normalize(f, dim=-1, eps=1e-10) @ F.normalize(g, dim=-1, eps=1e-10).mT
    return cosines - cosines.mean(-1, keepdim=True) + cosines.mean()


@torch.no_grad()
def kmeans_centres(head: nn.Module, training: Training) -> Float[Tensor, "k r"]:
    """Return the centres of the best of ten k-means starts on a head's unit codes; the head is in training after."""
    like = next(head.eval().parameters())
    codes = head(training.features.sample(SAMPLE, drawn(training.seed)).to(like)[None])[0]
    head.train()
    return kmeans(F.normalize(codes.double(), dim=-1).cpu(), training.classes, training.seed)


def read_by_kmeans(head: nn.Module, training: Training) -> Predictor:
    """Return the predictor of a head's cosine clusters, found by k-means.

    Published cluster probes descend on the same objective, minus the mean cosine to the nearest centre, from noise and
    beside the head, to which they send no gradient.
    """
    return by_prototypes(head, kmeans_centres(head, training))


def by_prototypes(head: nn.Module, prototypes: Float[Tensor, "k r"]) -> Predictor:
    """Return the predictor of the nearest prototype, by cosine, of both views' mean code, scaled up to pixels."""
    like = next(head.eval().parameters())
    unit = F.normalize(prototypes.double().cpu(), dim=-1)

    @torch.no_grad()
    def predict(views: Views, size: tuple[int, int]) -> Tensor:
        codes = [head(view.to(like)).double().cpu() for view in (views.plain, views.mirrored)]
        pixels = enlarged(Views(codes[0], codes[1], views.pictures).mean(unit=False), size)
        return torch.einsum("kr,brxy->bkxy", unit, F.normalize(pixels, dim=1))

    return predict
