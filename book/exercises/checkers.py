"""Check the answers to the book's exercises, and say what is wrong with them.

Each chapter of the method asks for one function. Its checker, `check_` and the function's name, calls it on small
inputs, compares what it returns with the truth, and recognises common mistakes. Begin with `Verdict`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cause_lite.probe import LinearProbe

Answer = Callable[..., Any]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to look at if it is not."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.message}"


class WrongAnswerError(Exception):
    """An answer is wrong; the text says how."""


def checker(check: Callable[[Answer], str]) -> Callable[[Answer], Verdict]:
    """Make a check return a Verdict: it raises WrongAnswerError, or returns what a right answer shows."""

    @functools.wraps(check)
    def checked(answer: Answer) -> Verdict:
        try:
            return Verdict(True, check(answer))
        except WrongAnswerError as wrong:
            return Verdict(False, str(wrong))

    return checked


def _called(answer: Answer, *arguments: Any) -> Any:
    """Return what the answer returns; say so when it raises, or returns nothing."""
    name = getattr(answer, "__name__", "the answer")
    try:
        value = answer(*arguments)
    except Exception as error:
        raise WrongAnswerError(f"{name} raised {type(error).__name__}: {error}") from error
    if value is None:
        raise WrongAnswerError(f"{name} returned nothing; write its body, and end it with `return`")
    return value


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers as an array of one shape."""
    try:
        array = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise WrongAnswerError(f"expected numbers of shape {shape}, not {type(value).__name__}") from error
    if array.shape != shape:
        raise WrongAnswerError(f"expected numbers of shape {shape}, not {array.shape}")
    return array


def _compare(value: Any, expected: Any, mistakes: dict[str, Any]) -> None:
    """Raise WrongAnswerError unless a value is the expected one; name the mistake that gives this value, if known."""
    right = np.asarray(expected, dtype=np.float64)
    found = _numbers(value, right.shape)
    if np.allclose(found, right, atol=TOLERANCE):
        return
    for message, result in mistakes.items():
        if np.allclose(found, np.asarray(result, dtype=np.float64), atol=TOLERANCE):
            raise WrongAnswerError(message)
    raise WrongAnswerError(f"expected {np.round(right, 3).tolist()}, not {np.round(found, 3).tolist()}")


@checker
def check_purity(answer: Answer) -> str:
    """Check `purity(groups, classes)`: the percentage of patches that are of the commonest class of their group."""
    groups = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    classes = np.array([5, 5, 5, 7, 5, 5, 7, 7, 7, 6])
    mistakes = {
        "this is a share; multiply by 100 for percent": 0.7,
        "each class was given to one group only; here groups 0 and 1 may both take class 5": 50.0,
        "this is a mean over groups; each patch counts once, so large groups weigh more": 100
        * (3 / 4 + 2 / 3 + 2 / 3)
        / 3,
    }
    _compare(_called(answer, groups, classes), 70.0, mistakes)
    _compare(_called(answer, np.arange(5), np.zeros(5, dtype=int)), 100.0, {})
    return "a group for each patch is 100 % pure. This is why purity needs equal numbers of groups."


@checker
def check_positives(answer: Answer) -> str:
    """Check `positives(concept, cosines, threshold)`: which of n patches are positives of which, (n, n) booleans."""
    concept = torch.tensor([0, 1, 2, 0])
    cosines = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]])
    pairs = cosines[concept][:, concept] > 0.8
    apart = ~torch.eye(4, dtype=torch.bool)
    mistakes = {
        "a patch is its own positive here; leave the diagonal out": pairs,
        "only patches of one concept are positives here; look up the cosine of their two concepts": apart
        & (concept[:, None] == concept),
        "these are the negatives: a positive's cosine is above the threshold": apart & ~pairs,
    }
    _compare(_called(answer, concept, cosines, 0.8), (apart & pairs).numpy(), mistakes)
    return "patches 0, 1 and 3 attract each other, though 1 is of another concept."


@checker
def check_nearest_patch(answer: Answer) -> str:
    """Check `nearest_patch(features, image, patch)`: (image, patch) of the most similar patch of another image."""
    features = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[3.0, 3.0], [1.0, 0.2]], [[0.0, 2.0], [-1.0, 0.0]]])
    mistakes = {
        "this is the patch itself; look in other images": (0, 0),
        "this patch lies in the same image; leave out all patches of that image": (0, 1),
        "the longest vector won; scale all vectors to length 1 before comparing": (1, 0),
    }
    _compare(_called(answer, features, 0, 0), (1, 1), mistakes)
    _compare(_called(answer, features, 2, 0), (1, 0), {})
    return "the cosine ignores how long the vectors are."


@checker
def check_modularity(answer: Answer) -> str:
    """Check `modularity(edges, group)`: Q of a grouping of the nodes of a symmetric graph."""
    edges, group = np.zeros((6, 6)), np.array([0, 0, 0, 1, 1, 1])
    for i, j in [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]:
        edges[i, j] = edges[j, i] = 1
    mistakes = {
        "this is the share of edges inside groups; subtract what chance puts there": 12 / 14,
        "divide by e once more: Q is a difference of shares": 5.0,
        "e is the sum of all degrees, 14; this takes the number of edges, 7": 12 / 7 - 2,
    }
    _compare(_called(answer, edges, group), 5 / 14, mistakes)
    _compare(_called(answer, edges, np.zeros(6, dtype=int)), 0.0, {})
    _compare(
        _called(answer, 3 * edges, group), 5 / 14, {"Q must not change when all edges grow by one factor": 15 / 14}
    )
    return "12/14 - 1/2 = 5/14 for the two triangles, and 0 for one group."


@checker
def check_pull(answer: Answer) -> str:
    """Check `pull(z, positive)`: minus the derivative of one anchor's contrastive loss by each similarity z."""
    z, positive = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([True, True, False, False])
    attract, repel = positive.float() / positive.sum(), z.softmax(0)
    mistakes = {
        "the sign is that of the derivative; descent goes the other way": repel - attract,
        "divide the attraction by the number of positives: the loss is a mean over them": positive.float() - repel,
        "only the repulsion is there; add the attraction to the positives": -repel,
        "positives are in the denominator too: let the softmax run over all": attract
        - z.masked_fill(positive, -torch.inf).softmax(0),
    }
    _compare(_called(answer, z, positive), attract - repel, mistakes)
    return "the weights sum to 0: what is attracted and what is repelled weigh the same."


@checker
def check_mean_iou(answer: Answer) -> str:
    """Check `mean_iou(counts)`: mIoU in percent of pixels by cluster and class, cluster a being named class a."""
    counts = np.array([[6, 1, 0], [3, 5, 0], [1, 0, 4]])
    hits, clusters, classes = counts.diagonal(), counts.sum(1), counts.sum(0)
    expected = 100 * (hits / (clusters + classes - hits)).mean()
    mistakes = {
        "this is a share; multiply by 100 for percent": expected / 100,
        "this is the mean recall; the union also holds what is wrongly named so": 100 * (hits / classes).mean(),
        "this is the mean precision; the union also holds what was missed": 100 * (hits / clusters).mean(),
        "this is the pixel accuracy; take the IoU of each class, then their mean": 100 * hits.sum() / counts.sum(),
        "the overlap was counted twice in the union; subtract it once": 100 * (hits / (clusters + classes)).mean(),
    }
    _compare(_called(answer, counts), expected, mistakes)
    return "each class counts the same, however few pixels it has."


@checker
def check_front_door(answer: Answer) -> str:
    """Check `front_door(p_t, p_m, p_y)`: P(Y = 1 | do(t)) from P(t) (T,), P(m | t) and P(Y = 1 | t, m) (T, M)."""
    p_t, p_m = np.array([0.3, 0.7]), np.array([[0.9, 0.1], [0.2, 0.8]])
    p_y = np.array([[0.1, 0.5], [0.4, 0.9]])
    mistakes = {
        "this is P(Y = 1 | t), plain association: average P(Y = 1 | t', m) over all t', not at t": (p_m * p_y).sum(1),
        "every t' counts the same here; weigh it by P(t')": p_m @ p_y.mean(0),
        "the mediator is weighed by P(m); take P(m | t), which depends on t": np.full(2, p_t @ p_m @ (p_t @ p_y)),
    }
    _compare(_called(answer, p_t, p_m, p_y), p_m @ (p_t @ p_y), mistakes)
    return "the inner sum does not depend on t; only P(m | t) does."


@checker
def check_reached(answer: Answer) -> str:
    """Check `reached(loss, module)`: the names of a module's parameters that the gradient of a loss reaches, sorted."""
    torch.manual_seed(0)
    head, probe, x = nn.Linear(4, 3), LinearProbe(2, 3), torch.randn(5, 4)
    target = torch.tensor([0, 1, 0, 1, 0])
    leaking = F.cross_entropy(probe.classify(head(x)), target)
    clean = F.cross_entropy(probe(head(x)), target)
    for loss, expected, case in ((leaking, ["bias", "weight"], "without"), (clean, [], "with")):
        found = sorted(_called(answer, loss, head))
        if any(parameter.grad is not None for parameter in head.parameters()):
            raise WrongAnswerError("it leaves gradients behind in `.grad`; use torch.autograd.grad")
        if found != expected:
            raise WrongAnswerError(f"{case} a detach the loss reaches {expected} of the head, not {found}")
    return "one detach decides whether labels train the head."
