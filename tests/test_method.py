"""The method's parts by hand-made examples whose answer is known: concepts, bank, contrast, heads, probes, scores."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cause_lite import frontdoor, mediator
from cause_lite.frontdoor import ConceptBank, concept_contrastive_loss
from cause_lite.head import MLPHead, TRHead, TwoBranch, ema_update
from cause_lite.metrics import ClusterMetrics
from cause_lite.probe import ClusterProbe, LinearProbe, labelled_loss, patch_labels

seeds = st.integers(0, 2**31 - 1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Step 1.


def test_modularity_of_two_pairs():
    """Two pairs of equal patches, at right angles: A_ij = 1 within a pair, d = 1, e = 4, W_ij = 3/4 or -1/4."""
    features = torch.eye(2).repeat_interleave(2, 0)[None]
    graph, total = mediator.modularity_matrix(features)
    pair = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    assert total.item() == 4
    torch.testing.assert_close(graph[0], pair - torch.eye(4) - 0.25)
    apart, together = torch.eye(2), torch.ones(1, 2)
    wanted = -(graph / 4 * torch.tanh(pair / 0.1)).sum()
    torch.testing.assert_close(mediator.modularity_loss(features, apart), wanted)
    torch.testing.assert_close(mediator.modularity_loss(features, together), -(graph / 4 * math.tanh(5)).sum())
    assert mediator.modularity_loss(features, apart) < mediator.modularity_loss(features, together)


def test_the_temperature_is_a_tenth_unless_given():
    features, codebook = random(2, 9, 5), random(4, 5, seed=1)
    assert mediator.modularity_loss(features, codebook) == mediator.modularity_loss(features, codebook, 0.1)
    assert mediator.modularity_loss(features, codebook) != mediator.modularity_loss(features, codebook, 0.2)


def test_an_image_without_edges_has_no_modularity():
    """Opposite patches share no edge; nor has an image of one patch any."""
    for features in (torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.ones(1, 1, 2)):
        graph, total = mediator.modularity_matrix(features)
        assert total.item() == 0 and torch.equal(graph, torch.zeros_like(graph))
        assert mediator.modularity_loss(features, torch.eye(2)) == 0


def test_opposite_vectors_share_no_concept():
    membership = mediator.assign(torch.tensor([[[2.0, 0.0], [-1.0, 0.0], [3.0, 3.0]]]), torch.tensor([[5.0, 0.0]]))
    torch.testing.assert_close(membership[0, :, 0], torch.tensor([1.0, 0.0, math.sqrt(0.5)]))


@pytest.mark.parametrize("patches, cell, count", [(529, 4, 25), (1600, 4, 100), (16, 2, 4), (16, 1, 16), (9, 3, 1)])
def test_one_draw_a_whole_cell(patches, cell, count):
    """Each place of a cell can be drawn, by the generator that is given and by nothing else."""
    torch.manual_seed(0)
    draws = mediator.draw_cells(60, patches, cell, generator())
    assert draws.shape == (60 * count,)
    assert set(draws.tolist()) == set(range(cell * cell))
    torch.manual_seed(1)
    assert torch.equal(draws, mediator.draw_cells(60, patches, cell, generator()))


@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_a_draw_names_a_patch_of_its_cell_row_by_row(seed, images, whole, cell):
    """Rows and columns beyond the last whole cell are left out."""
    side = whole * cell + seed % cell
    places = torch.arange(float(images * side * side)).view(images, side * side, 1)
    draws = mediator.draw_cells(images, side * side, cell, generator(seed))
    kept = mediator.sample_grid(places, cell, draws)
    assert kept.shape == (images, whole * whole, 1)
    draws = draws.view(images, whole, whole)
    for image, row, column in np.ndindex(images, whole, whole):
        down, right = divmod(int(draws[image, row, column]), cell)
        place = (image * side + row * cell + down) * side + column * cell + right
        assert kept[image, row * whole + column, 0] == place


@pytest.mark.parametrize("patches, cell", [(16, 5), (12, 2), (8, 2), (12, 5)])
def test_patches_that_make_no_grid_are_refused(patches, cell):
    with pytest.raises(ValueError, match=f"{patches} patches are not a square grid with a whole {cell} x {cell} cell"):
        mediator.sample_grid(torch.zeros(1, patches, 1), cell, torch.zeros(1, dtype=torch.long))


def test_the_nearest_concept_is_by_angle_whatever_the_lengths():
    """Patches of one image at lengths of 1 to 1,000, codes at 0.1 and 10."""
    features = torch.tensor([[[1.0, 2.0], [500.0, 10.0], [-1.0, 30.0], [1000.0, 900.0]]])
    codes, index = mediator.quantize(features, torch.tensor([[10.0, 0.0], [0.0, 0.1]]))
    assert index.tolist() == [[1, 0, 1, 0]]
    torch.testing.assert_close(codes, torch.tensor([[[0.0, 0.1], [10.0, 0.0], [0.0, 0.1], [10.0, 0.0]]]))


# Step 2.


def stored_in(bank: ConceptBank) -> tuple[torch.Tensor, torch.Tensor]:
    """The bank's vectors, and the concept of each."""
    keys = bank.keys()
    return keys.vectors[keys.rows], keys.concepts


def test_a_full_bank_drops_its_oldest_vectors_of_each_concept():
    """Three vectors a concept; concept 1 gets five, in three updates, concept 0 one, concept 2 none."""
    bank, vectors = ConceptBank(3, 4, capacity=3), torch.eye(4)
    for concept, each in ((1, vectors[:2]), (1, vectors[1:3]), (0, vectors[3:]), (1, 5 * vectors[3:])):
        bank.update(each, torch.full((len(each),), concept), generator(), share=1.0)
    stored, owners = stored_in(bank)
    assert owners.tolist() == [0, 1, 1, 1]
    assert bank.filled.tolist() == [1, 3, 0] and bank.cursor.tolist() == [1, 2, 0]
    assert stored[0].tolist() == [0, 0, 0, 1]
    assert sorted(stored[1:].tolist()) == sorted(vectors[1:].tolist())
    assert bank.keys().rows.tolist() == [0, 3, 4, 5]


def test_a_bank_takes_half_of_the_new_vectors_and_keeps_a_hundred():
    bank = ConceptBank(2, 3)
    bank.update(random(301, 3), torch.zeros(301, dtype=torch.long), generator())
    assert bank.filled.tolist() == [100, 0]
    bank.update(random(7, 3), torch.ones(7, dtype=torch.long), generator())
    assert bank.filled.tolist() == [100, 3]
    bank.update(random(1, 3), torch.ones(1, dtype=torch.long), generator())
    assert bank.filled.tolist() == [100, 3]


def test_which_half_is_by_the_generator_alone():
    banks = [ConceptBank(2, 3) for _ in range(3)]
    for number, bank in enumerate(banks):
        torch.manual_seed(number)
        bank.update(random(40, 3), torch.arange(40) % 2, generator(number // 2))
    assert torch.equal(banks[0].vectors, banks[1].vectors)
    assert not torch.equal(banks[0].vectors, banks[2].vectors)


def test_a_bank_holds_numbers_and_no_graph():
    bank, vectors = ConceptBank(1, 3), random(4, 3).requires_grad_()
    bank.update(vectors, torch.zeros(4, dtype=torch.long), generator())
    assert not bank.vectors.requires_grad


def test_a_bank_goes_on_from_its_state():
    first, second = ConceptBank(2, 3, 5), ConceptBank(2, 3, 5)
    first.update(random(9, 3), torch.arange(9) % 2, generator())
    second.load_state_dict(first.state_dict())
    for bank in (first, second):
        bank.update(random(9, 3, seed=1), torch.arange(9) % 2, generator(1))
    assert all(torch.equal(*parts) for parts in zip(stored_in(first), stored_in(second), strict=True))
    assert torch.equal(first.cursor, second.cursor)


def contrast_by_pairs(concepts, alike, student, teacher, keys, owners, itself: bool) -> float:
    """-log(exp(s+) / sum exp(s)) pair by pair, a mean over pairs and then over images; s = cosine / 0.07."""
    losses = []
    for image, (mine, anchors) in enumerate(zip(concepts, F.normalize(student, dim=-1), strict=True)):
        terms = []
        for patch, (concept, anchor) in enumerate(zip(mine, anchors, strict=True)):
            scores = F.normalize(keys, dim=-1) @ anchor / 0.07
            near = alike[concept, owners]
            counted = ((near > 0.3) | (near < 0.1)).float()
            positive = near > 0.3
            if itself:
                own = image * len(mine) + patch
                counted[own], positive[own] = 0, False
            terms += (torch.log((scores.exp() * counted).sum()) - scores[positive]).tolist()
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("stored", [0, 1, 9])
def test_the_contrast_is_the_mean_over_pairs_then_images_then_batch_and_bank(stored):
    features, codebook = random(3, 5, 4), random(6, 4, seed=1)
    student, teacher = random(3, 5, 7, seed=2), random(3, 5, 7, seed=3)
    concepts, unit = mediator.quantize(features, codebook)[1], F.normalize(codebook, dim=-1)
    bank = (random(stored, 7, seed=4), torch.arange(stored) % 6)
    given = (concepts, unit @ unit.T, student, teacher)
    wanted = contrast_by_pairs(*given, teacher.flatten(0, 1), concepts.flatten(), True)
    if stored:
        wanted = (wanted + contrast_by_pairs(*given, *bank, False)) / 2
    found = concept_contrastive_loss(features, codebook, student, teacher, bank)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_bank_object_and_its_contents_are_one():
    bank = ConceptBank(6, 7, 4)
    features, codebook, student, teacher = random(2, 4, 5), random(6, 5), random(2, 4, 7), random(2, 4, 7, seed=1)
    empty = concept_contrastive_loss(features, codebook, student, teacher, bank)
    assert empty == concept_contrastive_loss(features, codebook, student, teacher)
    bank.update(random(20, 7, seed=3), torch.arange(20) % 6, generator())
    held = [concept_contrastive_loss(features, codebook, student, teacher, b) for b in (bank, stored_in(bank))]
    torch.testing.assert_close(*held)
    assert held[0] != empty


def test_a_pair_without_any_counted_key_is_finite():
    """Cosines between the thresholds: neither positives nor negatives, in one image of two."""
    anchors, keys = random(2, 2, 3).requires_grad_(), random(4, 3)
    positive = torch.tensor([[False] * 4] * 2 + [[True, False, True, False]] * 2)
    loss = frontdoor.info_nce(anchors, keys, positive, positive & False, 0.07)
    loss.backward()
    alone = frontdoor.info_nce(anchors[1:], keys, positive[2:], positive[2:] & False, 0.07)
    assert loss.item() == pytest.approx(alone.item() / 2)
    assert torch.isfinite(anchors.grad).all() and not anchors.grad[0].any()


@pytest.mark.parametrize("pairs", [1, 2])
def test_an_image_of_few_pairs_counts(pairs):
    """-log of a key's share among two, where one anchor has one positive, or each of two has."""
    anchors, keys = torch.eye(2)[None], torch.eye(2)
    positive = torch.eye(2, dtype=torch.bool) & (torch.arange(2) < pairs)
    loss = frontdoor.info_nce(anchors, keys, positive, ~torch.eye(2, dtype=torch.bool), 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_a_part_of_the_anchors_leaves_out_its_own_keys():
    """Two processes, each with one image of two: the mean of their losses is the loss of both images."""
    features, codebook = random(2, 5, 4), random(6, 4, seed=1)
    student, teacher = random(2, 5, 7, seed=2), random(2, 5, 7, seed=3)
    parts = [concept_contrastive_loss(features, codebook, student[i : i + 1], teacher, first=i) for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, concept_contrastive_loss(features, codebook, student, teacher))


# Heads.


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_every_dropout_of_a_head_is_the_setting(share):
    head = TRHead(8, 5, 16, random(6, 8), share)
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [share] * 4
    assert MLPHead(8, 5, share).reduce.dropout.p == share
    assert MLPHead(8, 5).reduce.dropout.p == TRHead(8, 5, 16, random(6, 8)).reduce.dropout.p == 0.1


def test_the_two_branches_drop_apart():
    """Each on its own draw: with half of the input dropped, their sum has other values than either's alone."""
    torch.manual_seed(0)
    branches = TwoBranch(1, 1, 0.5)
    with torch.no_grad():
        for layer in (branches.linear, branches.nonlinear[0], branches.nonlinear[2]):
            layer.weight.fill_(1)
            layer.bias.zero_()
    values = {round(value, 4) for value in branches(torch.ones(1, 200, 1)).flatten().tolist()}
    assert values == {0.0, 2.0, 4.0}  # both dropped, one of them, neither; what is kept is doubled
    assert branches.eval()(torch.ones(1, 3, 1)).flatten().tolist() == [2.0] * 3


def test_positions_are_as_learned_at_their_own_resolution_and_resized_at_another():
    head = TRHead(3, 2, 16, random(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert head.positions(16) is head.query_position
    grid = head.query_position.detach().T.view(1, 3, 4, 4)
    with pytest.warns(UserWarning, match="trained on 16 patches and runs on 4"):
        torch.testing.assert_close(head.positions(4), F.avg_pool2d(grid, 2)[0].flatten(1).T)
    with pytest.warns(UserWarning, match="runs on 64"):
        assert head.positions(64).shape == (64, 3)


def test_positions_enter_queries_and_keys_and_never_values():
    """Attention to equal values returns them wherever the patches are."""
    torch.manual_seed(0)
    head = TRHead(4, 3, 9, torch.ones(1, 4)).eval()
    outputs = head(random(1, 1, 4).expand(1, 9, 4))
    torch.testing.assert_close(outputs, outputs[:, :1].expand_as(outputs))
    differing = TRHead(4, 3, 9, random(5, 4)).eval()
    vectors = random(1, 9, 4, seed=2)
    turned = differing(vectors.flip(1)).flip(1)
    assert not torch.allclose(turned, differing(vectors), atol=1e-3)


def test_a_heads_codebook_is_its_own_and_does_not_learn():
    codebook = random(6, 8).requires_grad_()
    head = TRHead(8, 5, 16, codebook)
    assert head.codebook.data_ptr() != codebook.data_ptr() and not head.codebook.requires_grad
    assert "codebook" in head.state_dict() and "codebook" not in dict(head.named_parameters())


def test_an_average_moves_the_teacher_alone_and_by_a_hundredth():
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.detach().clone() for p in (*teacher.parameters(), *student.parameters())]
    ema_update(teacher, student)
    for slow, old, fast, same in zip(teacher.parameters(), before[:2], student.parameters(), before[2:], strict=True):
        torch.testing.assert_close(slow.detach(), 0.99 * old + 0.01 * same)
        assert torch.equal(fast, same)
    with pytest.raises(ValueError, match="zip"):
        ema_update(teacher, nn.Linear(3, 2, bias=False))


# Step 3.


def test_a_probe_begins_with_noise_that_shrinks_with_its_size():
    torch.manual_seed(0)
    for clusters in (4, 50):
        centres = clusters * ClusterProbe(clusters, 400).centres.detach()
        assert -1 <= centres.min() < -0.98 and 0.98 < centres.max() <= 1 and abs(centres.mean()) < 0.05


def test_the_nearest_cluster_is_by_angle_along_the_last_axis():
    probe = ClusterProbe(3, 2)
    probe.centres.data = torch.tensor([[9.0, 0.0], [0.0, 0.1], [-1.0, -1.0]])
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 1.0]], [[-5.0, -4.0], [0.1, 0.3]]])
    assert probe.labels(vectors).tolist() == [[1, 0], [2, 1]]
    cosines = F.cosine_similarity(vectors[..., None, :], probe.centres, dim=-1)
    torch.testing.assert_close(probe.similarity(vectors), cosines)
    torch.testing.assert_close(probe.log_probs(vectors), torch.log_softmax(3 * cosines, -1))
    torch.testing.assert_close(probe.log_probs(vectors, 1.5), torch.log_softmax(1.5 * cosines, -1))
    torch.testing.assert_close(probe.loss(vectors), -cosines.max(-1).values.mean())


def test_a_probes_loss_teaches_the_probe_alone():
    probe, vectors = ClusterProbe(3, 2), random(4, 2).requires_grad_()
    probe.loss(vectors).backward()
    assert vectors.grad is None and probe.centres.grad.any()
    linear = LinearProbe(3, 2)
    linear(vectors).sum().backward()
    assert vectors.grad is None and linear.classify.weight.grad.any()


def test_the_labelled_loss_of_one_label_is_its_cross_entropy():
    logits, target = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[-1, 2, -1]])
    torch.testing.assert_close(labelled_loss(logits, target), F.cross_entropy(logits[0, :, 1], torch.tensor(2)))


def test_a_concept_that_stores_nothing_leaves_a_full_bank_as_it_is():
    bank, generator = ConceptBank(2, 4, capacity=3), torch.Generator().manual_seed(0)
    bank.update(torch.randn(6, 4, generator=generator), torch.zeros(6, dtype=torch.long), generator)
    before = bank.vectors.clone()
    assert bank.filled.tolist() == [3, 0]
    bank.update(torch.randn(1, 4, generator=generator), torch.zeros(1, dtype=torch.long), generator)
    assert torch.equal(bank.vectors, before) and bank.filled.tolist() == [3, 0]


@pytest.mark.parametrize("shape", [(7,), (2, 5), (2, 3, 4)])
def test_the_labelled_loss_is_the_mean_over_what_is_labelled(shape):
    logits = random(shape[0], 5, *shape[1:]).requires_grad_()
    target = torch.randint(-1, 5, shape, generator=generator())
    flat = torch.log_softmax(logits, 1).movedim(1, -1)
    wanted = [-flat[place][target[place]] for place in np.ndindex(shape) if target[place] >= 0]
    assert 0 < len(wanted) < target.numel()
    torch.testing.assert_close(labelled_loss(logits, target), torch.stack(wanted).mean())


@pytest.mark.parametrize("scale", [0, 1])
def test_nothing_labelled_costs_nothing(scale):
    logits = (scale * random(2, 5, 3)).requires_grad_()
    loss = labelled_loss(logits, torch.full((2, 3), -1))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("side, step", [(4, 8), (3, 5), (2, 1), (5, 4)])
def test_a_patch_has_the_label_of_its_centre(side, step):
    """The middle pixel, or the one below and to the right of the middle."""
    labels = np.arange(2 * (side * step) ** 2).reshape(2, side * step, side * step)
    found = patch_labels(labels, side)
    assert found.shape == (2, side * side) and found.dtype == torch.int64
    for image, row, column in np.ndindex(2, side, side):
        place = labels[image, row * step + step // 2, column * step + step // 2]
        assert found[image, row * side + column] == place


# Scores.


def scored(pairs: list[tuple[int, int, int]], classes: int, clusters: int | None = None) -> ClusterMetrics:
    """Metrics of (cluster, class, how often)."""
    metrics = ClusterMetrics(classes, clusters)
    for cluster, of_class, count in pairs:
        metrics.update(torch.full((count,), cluster), torch.full((count,), of_class))
    return metrics


def test_scores_by_hand():
    """Cluster 1 is class 0 (6 of its 8 pixels; the class has 9), cluster 0 is class 1 (2 of 5; it has 4)."""
    scores = scored([(1, 0, 6), (1, 1, 2), (0, 0, 3), (0, 1, 2)], 2).compute()
    assert scores["pacc"] == pytest.approx(100 * 8 / 13)
    assert scores["iou"].tolist() == pytest.approx([6 / 11, 2 / 7])
    assert scores["miou"] == pytest.approx(100 * (6 / 11 + 2 / 7) / 2)
    assert scores["mean_recall"] == pytest.approx(100 * (6 / 9 + 2 / 4) / 2)
    assert scores["mean_precision"] == pytest.approx(100 * (6 / 8 + 2 / 5) / 2)


def test_every_pair_of_cluster_and_class_is_counted_apart():
    counts = torch.arange(15).view(5, 3) + 1
    pairs = [(cluster, of_class, int(counts[cluster, of_class])) for cluster, of_class in np.ndindex(5, 3)]
    assert torch.equal(scored(pairs, 3, 5).confusion, counts)


def test_clusters_beyond_the_classes_are_matched_to_none():
    metrics = scored([(2, 0, 5), (0, 1, 4), (1, 0, 3)], 2, 3)
    assert metrics.confusion.tolist() == [[0, 4], [3, 0], [5, 0]] and metrics.confusion.dtype == torch.int64
    assert metrics.matching().tolist() == [1, -1, 0]
    scores = metrics.compute()
    assert scores["pacc"] == pytest.approx(100 * 9 / 12)
    assert scores["iou"].tolist() == pytest.approx([5 / 8, 1])


def test_classes_that_never_occur_are_left_out():
    scores = scored([(0, 0, 3)], 3).compute()
    assert scores["iou"][0] == 1 and np.isnan(scores["iou"][1:]).all()
    assert scores["miou"] == scores["mean_recall"] == scores["pacc"] == 100
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        empty = ClusterMetrics(3).compute()
    assert all(math.isnan(empty[name]) for name in ("miou", "pacc", "mean_recall", "mean_precision"))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 9), st.integers(0, 999))
def test_classes_in_no_label_map_change_no_score(classes, clusters, more, seed):
    counts = torch.randint(0, 40, (clusters, classes), generator=torch.Generator().manual_seed(seed))
    few, many = ClusterMetrics(classes, clusters), ClusterMetrics(classes + more, clusters)
    few.confusion, many.confusion = counts, torch.nn.functional.pad(counts, (0, more))
    wanted, found = few.compute(), many.compute()
    assert np.isnan(found["iou"][classes:]).all()
    for name in ("miou", "pacc", "mean_recall", "mean_precision"):
        assert found[name] == pytest.approx(wanted[name], nan_ok=True)


def test_predictions_that_are_classes_are_not_matched():
    metrics = scored([(1, 0, 4), (0, 1, 4)], 2)
    assert metrics.compute()["pacc"] == 100 and metrics.unmatched()["pacc"] == 0


def test_void_and_foreign_labels_are_ignored_and_foreign_clusters_refused():
    metrics = ClusterMetrics(3, 4)
    metrics.update(torch.tensor([0, 1, 99, 3]), torch.tensor([0, 3, -1, 2]))
    assert metrics.confusion.sum() == 2 and metrics.confusion[3, 2] == 1
    metrics.update(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    assert metrics.confusion.sum() == 2
    for foreign in (4, 7, -1):
        with pytest.raises(ValueError, match=r"outside 0\.\.3"):
            metrics.update(torch.tensor([0, foreign]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        metrics.update(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
