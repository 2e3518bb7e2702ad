"""The book's page "CAUSE in 120 lines": its length, what it imports, and its functions against the package's."""

import ast
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cause_lite import frontdoor, head, mediator
from cause_lite.metrics import ClusterMetrics

PAGE = Path(__file__).parents[1] / "book" / "cause120.md"
MOST_LINES = 120  # of code, without imports, docstrings and the figure
ALLOWED = {"cause_lite.backbones", "cause_lite.datasets"}
CONCEPTS, WIDTH = 7, 6


def method_code() -> str:
    """Return the code of the page's cells above the exercises, without their options."""
    text = PAGE.read_text(encoding="utf-8").split("## Exercises")[0]
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", text, flags=re.S | re.M)
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith(":"))


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """The page's imports, constants in capitals, functions and classes; nothing of it is trained."""
    module = ModuleType("cause120")
    module.classes, module.side = 5, 4
    tree = ast.parse(method_code())
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).strip("()").replace(", ", "").isupper())
    ]
    exec(compile(tree, str(PAGE), "exec"), vars(module))
    return module


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_page_is_short():
    code = method_code().split("colours = plt")[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    documented = (n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef | ast.ClassDef))
    docstrings = sum(ast.get_docstring(node) is not None for node in documented)
    assert 100 <= len(lines) - docstrings <= MOST_LINES


def test_the_page_takes_images_and_a_backbone_from_the_package_and_nothing_else():
    modules = [n.module for n in ast.walk(ast.parse(method_code())) if isinstance(n, ast.ImportFrom)]
    assert {module for module in modules if module.startswith("cause_lite")} == ALLOWED


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), patches=st.integers(2, 9))
def test_modularity_equals_the_package(page, seed, patches):
    x, codes = drawn(seed, 3, patches, WIDTH), drawn(seed + 1, CONCEPTS, WIDTH).requires_grad_()
    ours, theirs = page.modularity_loss(x, codes), mediator.modularity_loss(x, codes)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, codes)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), images=st.integers(1, 3))
def test_contrast_equals_the_package_with_a_batch_and_with_a_bank(page, seed, images):
    features, codes = drawn(seed, images, 5, WIDTH), drawn(seed + 1, CONCEPTS, WIDTH)
    student, teacher = drawn(seed + 2, images, 5, 4), drawn(seed + 3, images, 5, 4)
    stored, of_concept = drawn(seed + 4, 8, 4), torch.arange(8) % CONCEPTS
    cosines, concept = (
        F.normalize(codes, dim=-1) @ F.normalize(codes, dim=-1).T,
        page.nearest(features, codes).flatten(),
    )
    between = (page.POSITIVE + page.NEGATIVE) / 2
    batch = page.contrast(student, teacher.flatten(0, 1), cosines[concept][:, concept].fill_diagonal_(between))
    both = (batch + page.contrast(student, stored, cosines[concept][:, of_concept])) / 2
    thresholds = {"positive_threshold": page.POSITIVE, "negative_threshold": page.NEGATIVE}
    for ours, bank in ((batch, None), (both, (stored, of_concept))):
        theirs = frontdoor.concept_contrastive_loss(features, codes, student, teacher, bank, **thresholds)
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_the_head_and_the_teacher_equal_the_package(page):
    ours, theirs = page.Head(WIDTH, 4).eval(), head.MLPHead(WIDTH, 4).eval()
    pairs = {"straight": theirs.reduce.linear, "bent": theirs.reduce.nonlinear}
    for name, module in pairs.items():
        module.load_state_dict(getattr(ours, name).state_dict())
    x = drawn(0, 2, 9, WIDTH).float()
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    slow, fast, other_slow = page.Head(WIDTH, 4), page.Head(WIDTH, 4), page.Head(WIDTH, 4)
    other_slow.load_state_dict(slow.state_dict())
    page.follow(slow, fast, 0.9)
    head.ema_update(other_slow, fast, 0.9)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(slow.parameters(), other_slow.parameters(), strict=True))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), capacity=st.integers(1, 4))
def test_the_bank_holds_as_many_vectors_of_each_concept_as_the_package(page, seed, capacity):
    ours, theirs = page.Bank(CONCEPTS, 4, capacity), frontdoor.ConceptBank(CONCEPTS, 4, capacity)
    generator, all_vectors = torch.Generator().manual_seed(seed), []
    for _ in range(3):
        vectors, concept = torch.randn(20, 4, generator=generator), torch.randint(CONCEPTS, (20,), generator=generator)
        ours.add(vectors, concept)
        theirs.update(vectors, concept, generator)
        all_vectors.append(torch.cat([vectors, concept[:, None].float()], 1))
    stored, of_concept = ours.keys()
    assert torch.equal(torch.bincount(of_concept, minlength=CONCEPTS), theirs.filled)
    offered = {tuple(row.tolist()) for row in torch.cat(all_vectors)}
    assert all(tuple(row.tolist()) in offered for row in torch.cat([stored, of_concept[:, None].float()], 1))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_matching_and_scores_equal_the_package(page, seed):
    rng = np.random.default_rng(seed)
    found, truth = (rng.integers(0, page.classes, (2, 6, 6)) for _ in range(2))
    named, miou, pacc = page.score(found, truth)
    metrics = ClusterMetrics(page.classes).update(torch.from_numpy(found), torch.from_numpy(truth))
    theirs = metrics.compute()
    assert np.array_equal(named, metrics.matching())
    assert (miou, pacc) == pytest.approx((theirs["miou"], theirs["pacc"]), abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_one_patch_of_each_cell_is_kept(page, seed):
    torch.manual_seed(seed)
    numbers = torch.arange(2 * 36.0).view(2, 36, 1)
    kept = page.one_of_each_cell(numbers)[..., 0].long()
    row, column = kept % 36 // 6, kept % 6
    assert torch.equal(row // 2 * 3 + column // 2, torch.arange(9).expand(2, 9))
    assert torch.equal(kept // 36, torch.tensor([[0] * 9, [1] * 9]))


def test_labels_of_pixels_are_those_of_the_package(page):
    x, centres = drawn(0, 16, 4).float(), drawn(1, 5, 4).float()
    maps = F.interpolate(x.T.view(1, 4, 4, 4), size=(128, 128), mode="bilinear", align_corners=False)
    nearest = (F.normalize(maps, dim=1).permute(0, 2, 3, 1)[0] @ F.normalize(centres, dim=-1).T).argmax(-1)
    assert torch.equal(page.label_map(x, centres), nearest)
