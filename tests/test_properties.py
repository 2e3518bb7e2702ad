"""What must hold for any input: gradients, invariances, degenerate images, half precision."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.frontdoor import ConceptBank, concept_contrastive_loss
from cause_lite.head import build_head
from cause_lite.lab.diagnostics import concept_counts, positive_agreement
from cause_lite.mediator import (
    assign,
    draw_cells,
    modularity_loss,
    modularity_matrix,
    quantize,
    sample_grid,
    shared_concept,
)
from cause_lite.metrics import ClusterMetrics
from cause_lite.probe import ClusterProbe, LinearProbe

seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


def drawn(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def contrastive_inputs(seed: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    shapes = {"features": (3, 9, 6), "codebook": (5, 6), "projected": (3, 9, 7), "projected_teacher": (3, 9, 7)}
    return {name: drawn(seed + i, *shape, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


@given(seeds, st.integers(2, 12), st.sampled_from([1, 4, 96, 97, 400]), st.floats(0, 3), dtypes)
def test_modularity_equals_the_plain_formula(seed, patches, concepts, likeness, dtype):
    """With few and many concepts, and patches so alike that the strongest concepts do not settle a pair."""
    features = drawn(seed, 2, patches, 5, dtype=dtype) + likeness
    codebooks = [(drawn(seed + 1, concepts, 5, dtype=dtype) + likeness).requires_grad_() for _ in range(2)]
    ways = (fast_modularity.shared_concept, shared_concept)
    losses = [modularity_loss(features, c, 0.1, shared_concept=way) for way, c in zip(ways, codebooks, strict=True)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, **CLOSE[dtype])
    torch.testing.assert_close(*(c.grad for c in codebooks), **CLOSE[dtype])


@given(seeds, st.integers(1, 3), st.sampled_from([3, 40]), st.integers(1, 5), st.booleans(), dtypes)
@example(10056724, 1, 3, 1, False, torch.float64)  # a patch with neither positives nor negatives
def test_contrast_equals_the_plain_formula(seed, images, width, chunk, with_bank, dtype):
    """Given the projections, and given what they are computed from; value and gradients."""
    drawn_as = partial(drawn, dtype=dtype)
    features, codebook = drawn_as(seed, images, 6, 5), drawn_as(seed + 1, 4, 5)
    teacher, bank = drawn_as(seed + 2, images, 6, width), (drawn_as(seed + 3, 7, width), torch.arange(7) % 4)
    found = []
    for form in ("plain", "projected", "pair"):
        inputs, linear = drawn_as(seed + 4, images, 6, 2).requires_grad_(), torch.nn.Linear(2, width, dtype=dtype)
        linear.load_state_dict({"weight": drawn_as(seed + 5, width, 2), "bias": drawn_as(seed + 6, width)})
        fast = partial(fast_contrast.concept_contrastive_loss, chunk=chunk)
        contrast = concept_contrastive_loss if form == "plain" else fast
        projected = (inputs, linear) if form == "pair" else linear(inputs)
        loss = contrast(features, codebook, projected, teacher, bank if with_bank else None)
        loss.backward()
        found.append((loss, inputs.grad, linear.weight.grad, linear.bias.grad))
    for other in found[1:]:
        for ours, plain in zip(other, found[0], strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, plain, **CLOSE[dtype])


@pytest.mark.parametrize("kind", ["mlp", "tr"])
def test_a_head_computes_picked_patches_as_if_it_had_computed_all(kind):
    torch.manual_seed(0)
    head = build_head(kind, 8, 5, 16, torch.randn(6, 8)).eval()
    features, draws = torch.randn(3, 16, 8), draw_cells(3, 16, 2, torch.Generator().manual_seed(1))
    select = partial(sample_grid, cell=2, draws=draws)
    torch.testing.assert_close(head(features, select), select(head(features)))


def test_gradients():
    features = drawn(0, 2, 9, 5)
    assert torch.autograd.gradcheck(lambda c: modularity_loss(features, c), drawn(1, 4, 5).requires_grad_())
    inputs = contrastive_inputs(2)
    bank = (drawn(3, 8, 7), torch.arange(8) % 5)

    def loss(projected):
        return fast_contrast.concept_contrastive_loss(**(inputs | {"projected": projected}), bank=bank, chunk=4)

    assert torch.autograd.gradcheck(loss, inputs["projected"].requires_grad_())


@given(seeds)
def test_modularity_ignores_the_order_of_images_patches_and_concepts(seed):
    features, codebook = drawn(seed, 3, 9, 5), drawn(seed + 1, 4, 5)
    loss = modularity_loss(features, codebook)
    shuffle = torch.Generator().manual_seed(seed)
    images, patches, concepts = (torch.randperm(n, generator=shuffle) for n in (3, 9, 4))
    torch.testing.assert_close(modularity_loss(features[images][:, patches], codebook[concepts]), loss)


@given(seeds)
def test_contrast_ignores_the_order_of_images_patches_and_concepts(seed):
    inputs = contrastive_inputs(seed)
    loss = concept_contrastive_loss(**inputs)
    shuffle = torch.Generator().manual_seed(seed)
    images, patches, concepts = (torch.randperm(n, generator=shuffle) for n in (3, 9, 5))
    moved = {k: v[concepts] if k == "codebook" else v[images][:, patches] for k, v in inputs.items()}
    torch.testing.assert_close(concept_contrastive_loss(**moved), loss)


def test_an_image_without_positives_contributes_nothing():
    codebook = torch.eye(4, dtype=torch.float64)
    features = torch.stack([codebook, codebook[[0, 0, 1, 1]]])  # the first image: four different concepts
    other = torch.stack([drawn(1, 4, 5), drawn(2, 4, 5)]).requires_grad_()
    alone = concept_contrastive_loss(features[:1], codebook, other[:1], other[:1])
    assert alone == 0
    loss = concept_contrastive_loss(features[:1].repeat(2, 1, 1)[:, :1], codebook, other[:, :1], other[:, :1])
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(other.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype):
    inputs = {k: v.to(dtype) for k, v in contrastive_inputs(5, torch.float32).items()}
    projected = inputs["projected"].requires_grad_()
    loss = concept_contrastive_loss(**inputs)
    loss.backward()
    codebook = inputs["codebook"].detach().clone().requires_grad_()
    modularity = modularity_loss(inputs["features"], codebook)
    modularity.backward()
    for value in (loss, projected.grad, modularity, codebook.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("shape", [(1, 1, 4, 1), (1, 4, 4, 1), (2, 1, 3, 5)])
def test_degenerate_sizes_behave(shape):
    batch, patches, dim, concepts = shape
    features, codebook = drawn(0, batch, patches, dim), drawn(1, concepts, dim).requires_grad_()
    loss = modularity_loss(features, codebook)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(codebook.grad).all()


@given(seeds, st.integers(2, 6), st.integers(0, 3))
def test_scores_ignore_the_numbering_of_clusters(seed, classes, more):
    """Clusters follow classes two times in three, so that the best matching is unique."""
    rng, clusters = np.random.default_rng(seed), classes + more
    target = rng.integers(0, classes, (3, 32, 32))
    preds = torch.from_numpy(np.where(rng.random(target.shape) < 0.67, target, rng.integers(0, clusters, target.shape)))
    target = torch.from_numpy(np.where(rng.random(target.shape) < 0.1, -1, target))
    renumbered = torch.from_numpy(rng.permutation(clusters))[preds]
    scores = []
    for predicted in (preds, renumbered):
        metrics = ClusterMetrics(classes, clusters)
        metrics.update(predicted, target)
        scores.append(metrics.compute())
    np.testing.assert_allclose(scores[0].pop("iou"), scores[1].pop("iou"))
    assert scores[0] == pytest.approx(scores[1])


def test_perfect_clusters_score_one_hundred_whatever_their_names():
    target = torch.arange(5).repeat(4, 5)
    metrics = ClusterMetrics(5)
    metrics.update((target + 2) % 5, target)
    assert metrics.compute()["miou"] == metrics.compute()["pacc"] == pytest.approx(100)


def test_metrics_refuse_clusters_out_of_range():
    with pytest.raises(ValueError, match="outside"):
        ClusterMetrics(3).update(torch.tensor([3]), torch.tensor([0]))


@given(seeds, st.integers(1, 6))
def test_the_bank_keeps_the_newest_half_of_each_concept(seed, capacity):
    generator, bank = torch.Generator().manual_seed(seed), ConceptBank(3, 4, capacity)
    for _ in range(4):
        concepts = torch.randint(3, (17,), generator=generator)
        vectors = torch.randn(17, 4, generator=generator)
        before = bank.filled.clone()
        bank.update(vectors, concepts, generator)
        new = torch.bincount(concepts, minlength=3) // 2
        assert torch.equal(bank.filled, (before + new).clamp(max=capacity))
        keys = bank.keys()
        stored, owner = keys.vectors[keys.rows], keys.concepts
        torch.testing.assert_close(stored.norm(dim=1), torch.ones(len(stored)))
        for concept in range(3):
            latest = stored[owner == concept] @ torch.nn.functional.normalize(vectors[concepts == concept], dim=1).T
            held = int((latest > 1 - 1e-5).any(1).sum()) if latest.numel() else 0
            assert held == min(int(new[concept]), capacity)


def test_sampling_keeps_one_patch_of_each_cell():
    features = torch.arange(16.0).view(1, 16, 1)
    kept = sample_grid(features, 2, torch.tensor([0, 1, 2, 3]))
    assert kept.flatten().tolist() == [0.0, 3.0, 12.0, 15.0]
    assert sample_grid(features, 3, torch.tensor([4])).flatten().tolist() == [5.0]  # one whole 3 x 3 cell
    for patches, cell in ((16, 5), (12, 2)):
        with pytest.raises(ValueError, match="square grid"):
            sample_grid(torch.zeros(1, patches, 1), cell, torch.tensor([0]))


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(1, 7))
def test_processes_share_a_contrast(seed, processes, images, with_bank, chunk):
    """The mean over processes, each with its part of the anchors and all keys, is the whole batch's loss and slope.

    Also where no key of a chunk is a patch of the process's anchors, and the projection's slope is wanted.
    """
    count = processes * images
    features, codebook = drawn(seed, count, 4, 5), drawn(seed + 1, 4, 5)
    teacher, bank = drawn(seed + 2, count, 4, 6), (drawn(seed + 3, 7, 6), torch.arange(7) % 4)
    found = []
    fast = partial(fast_contrast.concept_contrastive_loss, chunk=chunk)
    for form, parts in itertools.product(("plain", "projected", "pair"), (1, processes)):
        inputs, linear = drawn(seed + 4, count, 4, 2).requires_grad_(), torch.nn.Linear(2, 6, dtype=torch.float64)
        linear.load_state_dict({"weight": drawn(seed + 5, 6, 2), "bias": drawn(seed + 6, 6)})
        contrast, terms = concept_contrastive_loss if form == "plain" else fast, []
        for i, part in enumerate(inputs.split(count // parts)):
            projected, stored = (part, linear) if form == "pair" else linear(part), bank if with_bank else None
            terms.append(contrast(features, codebook, projected, teacher, stored, first=i * count // parts))
        loss = torch.stack(terms).mean()
        loss.backward()
        found.append((loss, inputs.grad, linear.weight.grad, linear.bias.grad))
    for other in found[1:]:
        for value, wanted in zip(other, found[0], strict=True):
            torch.testing.assert_close(value, wanted, **CLOSE[torch.float64])


@given(seeds)
def test_the_papers_objectives_equal_their_formulas(seed):
    features, codebook = drawn(seed, 2, 6, 4) + 0.5, drawn(seed + 1, 3, 4)
    graph, weight = modularity_matrix(features)
    together = assign(features, codebook) @ assign(features, codebook).transpose(1, 2)
    for objective, delta in (("quadratic", together), ("tanh", torch.tanh(together / 0.1))):
        wanted = -torch.einsum("bij,bij->b", graph / weight, delta).mean()
        torch.testing.assert_close(modularity_loss(features, codebook, 0.1, objective), wanted)
    with pytest.raises(ValueError, match="objective"):
        modularity_loss(features, codebook, 0.1, "trace")


def test_quantize_takes_the_nearest_by_angle():
    codebook = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    assert quantize(torch.tensor([[[1.0, 2.0]]]), codebook)[1].item() == 1


def test_the_linear_probe_teaches_nothing_but_itself():
    x = torch.randn(4, 6, requires_grad=True)
    probe = LinearProbe(3, 6)
    probe(x).sum().backward()
    assert x.grad is None and probe.classify.weight.grad is not None


def test_probe_probabilities_sum_to_one():
    log_probs = ClusterProbe(5, 3).log_probs(torch.randn(7, 3))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(7))


@given(seeds)
def test_positive_agreement_equals_counting_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    index, classes = torch.randint(5, (2, 16), generator=generator), torch.randint(3, (2, 16), generator=generator)
    codebook = drawn(seed, 5, 3)
    counts = concept_counts(index, classes.view(2, 4, 4).numpy(), 5)
    unit = torch.nn.functional.normalize(codebook, dim=-1)[index.flatten()]
    positive, same = unit @ unit.T > 0.2, classes.flatten()[:, None] == classes.flatten()
    precision, recall = positive_agreement(counts, codebook, 0.2)
    assert precision == pytest.approx(100 * float((positive & same).sum() / positive.sum()))
    assert recall == pytest.approx(100 * float((positive & same).sum() / same.sum()))
