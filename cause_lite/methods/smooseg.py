"""SmooSeg (Lan et al. 2023): labels minimise an energy, smooth where features are close, with prototypes and teacher.

A patch's labels are P = softmax(cosines of its code to the teacher's prototypes / temperature). The smoothness of two
images adds up (W - b) (1 - cosine of P and Q) over pairs of patches; W is the closeness of features, less the mean of
its row. Pairs closer than b are to share a label, others are not: b is a quantile of W over training images, as the
published numbers leave one cluster an image on other backbones. The student's prototypes fit the teacher's hard
labels; the teacher is their slow average, and predicts.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.head import TwoBranch, ema_update
from cause_lite.loop import Session, batch_size
from cause_lite.methods import training_loop as rival
from cause_lite.methods.method import Predictor, Training, register
from cause_lite.runtime.settings import AboveZero, Positive, Settings, Share


class SmooSegOptions(Settings):
    """How head and prototypes learn.

    Attributes
    ----------
    start
        Of the prototypes: k-means of the untrained head's codes, or, as released, random directions, some of which no
        patch ever goes to.
    within, across
        Share of pairs, within an image and of two images, that lie below the threshold and repel.
    temperature, decay
        Of the labels; of the teacher.
    learning_rate, prototype_rate
        Of Adam, for the head and for the student's prototypes.
    width, dropout, steps, points
        Of the code; of channels; of training, in whole epochs; patches of an image that a step looks at.
    """

    start: Literal["kmeans", "random"] = "kmeans"
    within: Share = 0.5
    across: Share = 0.9
    temperature: AboveZero = 0.1
    decay: Share = 0.998
    learning_rate: AboveZero = 1e-4
    prototype_rate: AboveZero = 5e-4
    width: Positive = 64
    dropout: Share = 0.2
    steps: Positive = rival.STEPS
    points: Positive = 256


class Prototypes(nn.Module):
    """One vector a cluster, at first of random direction and length 1; (B, P, R) -> cosines (B, P, K)."""

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(F.normalize(torch.randn(clusters, width), dim=-1))

    def forward(self, codes: Float[Tensor, "b p r"]) -> Float[Tensor, "b p k"]:
        """Return the cosine of each code to each prototype."""
        return F.normalize(codes, dim=-1) @ F.normalize(self.vectors, dim=-1).mT


def smoothness(f: Tensor, g: Tensor, p: Tensor, q: Tensor, threshold: float | Tensor) -> Float[Tensor, ""]:
    """Return the mean of (W - threshold) (1 - cosine of labels) over the pairs of two images' patches.

    With unit rows F, G of features (B, N, D) and P, Q of labels (B, N, K), r = F mean(G), m the mean of r, and 1 the
    vector of ones, W = F G' - r 1' + m, so that no matrix of pairs is needed:

        m - b - sum [ <F'P, G'Q> - P'r . Q'1 + (m - b) P'1 . Q'1 ] / (B N N)
    """
    with torch.no_grad():
        f, g = F.normalize(f, dim=-1, eps=1e-10), F.normalize(g, dim=-1, eps=1e-10)
        row = f @ g.mean(1)[..., None]  # (B, N, 1)
        level = row.mean() - threshold
    p, q = F.normalize(p, dim=-1, eps=1e-10), F.normalize(q, dim=-1, eps=1e-10)
    alike = (f.mT @ p * (g.mT @ q)).sum()
    alike = alike - ((p * row).sum(1) * q.sum(1)).sum() + level * (p.sum(1) * q.sum(1)).sum()
    return level - alike / (len(p) * p.shape[1] * q.shape[1])


class SmooSeg(nn.Module):
    """Head, student's and teacher's prototypes; `losses` of features (B, P, D) moves the teacher."""

    def __init__(self, head: TwoBranch, clusters: int, width: int) -> None:
        super().__init__()
        self.head, self.student, self.teacher = head, Prototypes(clusters, width), Prototypes(clusters, width)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def losses(
        self, batch: Tensor, order: Tensor, thresholds: tuple[float, float], options: SmooSegOptions
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the energy of smoothness, which trains the head, and the data term, which trains the student.

        The teacher then moves towards the student as it is before the step.
        """
        codes, signal = self.head(batch), self.head.dropout(batch)
        by_teacher, by_student = self.teacher(codes), self.student(codes.detach())
        labels = (by_teacher / options.temperature).softmax(-1)
        within = smoothness(signal, signal, labels, labels, thresholds[0])
        across = smoothness(signal, signal[order], labels, labels[order], thresholds[1])
        data = F.cross_entropy(by_student.flatten(0, 1), by_teacher.argmax(-1).flatten())
        ema_update(self.teacher, self.student, options.decay)
        return within + across, data


@torch.no_grad()
def thresholds_of(training: Training, model: SmooSeg, session: Session, options: SmooSegOptions) -> tuple[float, float]:
    """Return quantiles of the centred closeness, within images and across, of a batch of training images."""
    numbers = torch.randperm(len(training.features), generator=session.generator)[: batch_size(session.config)]
    batch = training.features[numbers].to(session.device, session.dtype)
    signal = model.head.dropout(rival.some_patches(batch, options.points, session.generator))
    order = rival.partners(len(signal), session.generator)
    found = [rival.centred_cosines(signal, other).flatten().sort().values for other in (signal, signal[order])]
    places = [round(share * (len(found[0]) - 1)) for share in (options.within, options.across)]
    return float(found[0][places[0]]), float(found[1][places[1]])


@register("smooseg", SmooSegOptions)
def learn(training: Training, options: SmooSegOptions) -> Predictor:
    """Train head and prototypes; a pixel goes to the teacher's nearest prototype."""
    with rival.session_of(training) as session:
        head = lambda: rival.two_branch(training.features.shape[2], options.width, options.dropout, nn.SiLU())  # noqa: E731
        model = session.build(lambda: SmooSeg(head(), training.classes, options.width))
        if options.start == "kmeans":
            centres = F.normalize(rival.kmeans_centres(model.head, training), dim=-1)
            for prototypes in (model.student, model.teacher):
                prototypes.vectors.data.copy_(centres)
        thresholds = thresholds_of(training, model, session, options)

        def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
            seen, order = (
                rival.some_patches(batch, options.points, session.generator),
                rival.partners(len(batch), session.generator),
            )
            smooth, data = model.losses(seen, order, thresholds, options)
            return smooth + data

        optimizers = [
            torch.optim.Adam(model.head.parameters(), lr=options.learning_rate),
            torch.optim.Adam(model.student.parameters(), lr=options.prototype_rate),
        ]
        rival.learn_by_adam("SmooSeg", training, session, options.steps, optimizers, [model], loss_of)
        return rival.by_prototypes(model.head, model.teacher.vectors.detach())
