"""The book's exercises: checkers accept the solution, refuse a wrong answer and say why; chapters ask all parts."""

import re
import runpy

import numpy as np
import pytest
import torch
from exercises import checkers
from scipy.optimize import linear_sum_assignment

from cause_lite.runtime.files import project_dir

BOOK = project_dir() / "book"
FUNCTIONS = {
    "granularity": "purity",
    "cause120": "positives",
    "features": "nearest_patch",
    "clusterbook": "modularity",
    "training": "pull",
    "evaluation": "mean_iou",
    "frontdoor": "front_door",
    "audit": "reached",
}


def raising(*arguments):
    return 1 / 0


def largest_cells(groups, classes):
    """Give each class to one group only, as matching would."""
    counts = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(counts, (groups, classes), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return 100 * counts[rows, columns].sum() / len(groups)


def reached_by_backward(loss, module):
    loss.backward()
    return sorted(name for name, p in module.named_parameters() if p.grad is not None)


def similar(concept, cosines, threshold):
    return cosines[concept][:, concept] > threshold


def same_concept(concept, cosines, threshold):
    return (concept[:, None] == concept) & ~torch.eye(len(concept), dtype=torch.bool)


def longest(features, image, patch):
    products = features @ features[image, patch]
    products[image] = -torch.inf
    return divmod(int(products.argmax()), features.shape[1])


def share_inside(edges, group):
    return (edges * (group[:, None] == group)).sum() / edges.sum()


WRONG = [
    ("purity", lambda groups, classes: 0.7, "multiply by 100"),
    ("purity", largest_cells, "may both take class 5"),
    ("purity", lambda groups, classes: [1, 2], r"shape \(\)"),
    ("positives", similar, "leave the diagonal out"),
    ("positives", same_concept, "cosine of their two concepts"),
    ("nearest_patch", lambda features, image, patch: (image, patch), "patch itself"),
    ("nearest_patch", longest, "length 1"),
    ("modularity", share_inside, "subtract what chance"),
    ("pull", lambda z, positive: z.softmax(0) - positive / positive.sum(), "sign"),
    ("pull", lambda z, positive: positive.float() - z.softmax(0), "number of positives"),
    (
        "pull",
        lambda z, positive: positive / positive.sum() - z.masked_fill(positive, -torch.inf).softmax(0),
        "denominator",
    ),
    ("mean_iou", lambda counts: 100 * counts.trace() / counts.sum(), "pixel accuracy"),
    ("mean_iou", lambda counts: 100 * (counts.diagonal() / counts.sum(0)).mean(), "mean recall"),
    ("front_door", lambda p_t, p_m, p_y: (p_m * p_y).sum(1), "association"),
    ("front_door", lambda p_t, p_m, p_y: p_m @ p_y.mean(0), "weigh it by"),
    ("reached", lambda loss, module: ["bias", "weight"], "with a detach"),
    ("reached", lambda loss, module: [], "without a detach"),
    ("reached", reached_by_backward, "leaves gradients behind"),
]


def checker_of(function: str):
    return getattr(checkers, f"check_{function}")


def sections_of(chapter: str) -> str:
    return (BOOK / f"{chapter}.md").read_text(encoding="utf-8").split("## Exercises")[1]


@pytest.mark.parametrize(("chapter", "function"), FUNCTIONS.items())
def test_the_solution_is_accepted(chapter, function):
    solution = runpy.run_path(str(BOOK / "exercises" / "solutions" / f"{chapter}.py"))[function]
    verdict = checker_of(function)(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(("function", "answer", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_answer_is_refused_with_what_is_wrong(function, answer, message):
    verdict = checker_of(function)(answer)
    assert not verdict.right
    assert re.search(message, verdict.message), verdict.message


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_an_empty_or_raising_answer_is_told_apart(function):
    assert "returned nothing" in checker_of(function)(lambda *arguments: None).message
    assert "ZeroDivisionError" in checker_of(function)(raising).message


def test_every_checker_has_a_chapter():
    checked = {name.removeprefix("check_") for name in vars(checkers) if name.startswith("check_")}
    assert checked == set(FUNCTIONS.values())


@pytest.mark.parametrize(("chapter", "function"), FUNCTIONS.items())
def test_a_chapter_asks_two_questions_a_function_and_an_experiment(chapter, function):
    asked = sections_of(chapter)
    assert asked.count("```{dropdown} Answer") == 2
    assert f"def {function}(" in asked and "# your code here" in asked
    assert f"from exercises.checkers import check_{function}" in asked
    assert f"\ncheck_{function}({function})" in asked
    assert "**Experiment" in asked and "minutes" in asked.split("**Experiment")[1]
    assert f"exercises/solutions/{chapter}.py" in asked


@pytest.mark.parametrize(("chapter", "function"), FUNCTIONS.items())
def test_no_solution_stands_beneath_its_question(chapter, function):
    solution = (BOOK / "exercises" / "solutions" / f"{chapter}.py").read_text(encoding="utf-8")
    last_line = [line.strip() for line in solution.splitlines() if line.strip()][-1]
    assert last_line not in sections_of(chapter)
