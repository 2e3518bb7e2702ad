"""The loop and what surrounds it: orders, draws, journals, losses that are not finite, beginnings, the whole fit."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite import loop, steps, train
from cause_lite.backbones import PatchStore
from cause_lite.backbones.feature_store import module_outputs
from cause_lite.datasets import Split
from cause_lite.fast import contrast as fast_contrast
from cause_lite.fast import modularity as fast_modularity
from cause_lite.initialise import initial_codebook, initial_probe
from cause_lite.loop import Session
from cause_lite.probe import ClusterProbe
from cause_lite.runtime.files import UserError, read_torch
from cause_lite.runtime.journal import Journal, NotFiniteError, Stage
from cause_lite.runtime.learner import Learner

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(vectors: Tensor, folder: Path) -> PatchStore:
    return PatchStore(folder / "vectors", vectors.shape, torch.float32, vectors.__getitem__, "Vectors")


def session_of(changes: dict[str, object] | None = None, journal: Journal | None = None) -> Session:
    torch.manual_seed(0)
    return Session(quick_config(changes), generator(), CPU, journal or Journal())


# Orders and draws.


@pytest.mark.parametrize("count, size, steps_an_epoch", [(12, 4, 3), (14, 4, 3), (3, 4, 1), (4, 4, 1)])
def test_an_epoch_meets_each_image_at_most_once(count, size, steps_an_epoch):
    """The last short batch is dropped; fewer images than a batch make one smaller batch."""
    config = quick_config({"optimisation.batch_size": size})
    order = loop.training_order(count, config, 3, generator())
    kept = steps_an_epoch * min(size, count)
    assert len(order) == 3 * kept
    epochs = order.view(3, kept)
    assert all(len(set(epoch.tolist())) == kept and set(epoch.tolist()) <= set(range(count)) for epoch in epochs)
    torch.manual_seed(1)
    assert torch.equal(order, loop.training_order(count, config, 3, generator()))
    assert not torch.equal(order, loop.training_order(count, config, 3, generator(1)))
    assert count < 5 or not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("count, size, kept, batch", [(64, 16, 16, 4), (70, 16, 16, 4), (12, 16, 4, 4), (9, 3, 2, 1)])
def test_as_released_one_process_takes_a_quarter(count, size, kept, batch):
    """A quarter of the images, at least one batch of them, by batches of a quarter, at least one image."""
    config = quick_config({"optimisation.batch_size": size, "optimisation.ddp": "as_released"})
    assert loop.batch_size(config) == batch
    assert len(loop.training_order(count, config, 2, generator())) == 2 * kept


def test_no_epoch_is_no_step(tmp_path):
    session = session_of()
    assert loop.training_order(5, session.config, 0, generator()).dtype == torch.long
    learner = Learner.adam(nn.Linear(1, 1), 0.1)
    assert loop.optimise("None", stored(torch.zeros(5, 1, 1), tmp_path), 0, learner, None, session) == []


def test_a_selection_is_one_draw_for_everything_selected():
    """Features, positions and concepts of a batch are selected alike; the next batch is drawn anew."""
    session, batch = session_of({"optimisation.cell": 2}), torch.arange(2 * 16.0).view(2, 16, 1)
    first, second = (loop.draw_selection(batch, session) for _ in range(2))
    assert first(batch).shape == (2, 4, 1)
    assert torch.equal(first(batch) * 3, first(3 * batch)) and torch.equal(first(batch), first(batch))
    assert not torch.equal(first(batch), second(batch))


# The loop.


def walk(folder: Path, losses: list[float], journal: Journal | None = None) -> tuple[nn.Linear, list, list[float]]:
    """Train a layer on given losses, one a step; return it, the image numbers of each step, and the losses."""
    layer, met = nn.Linear(1, 1, bias=False), []
    nn.init.ones_(layer.weight)
    values = torch.arange(4.0 * len(losses)).view(-1, 1, 1)

    def loss_of(numbers: Tensor, batch: Tensor) -> Tensor:
        assert batch.flatten().tolist() == numbers.tolist()
        met.append(numbers.tolist())
        return layer.weight.sum() * 0 + losses[len(met) - 1] + layer.weight.sum() - layer.weight.sum().detach()

    learner = Learner(nn.ModuleList([layer]), [torch.optim.SGD(layer.parameters(), lr=0.25)])
    found = loop.optimise("Walk", stored(values, folder), 1, learner, loss_of, session_of({}, journal))
    return layer, met, found


def test_each_step_meets_its_batch_and_notes_its_loss(tmp_path):
    layer, met, losses = walk(tmp_path, [3.0, 1.5, 2.0])
    assert losses == [3.0, 1.5, 2.0]
    assert layer.weight.item() == 1 - 3 * 0.25
    assert sorted(itertools.chain(*met)) == list(range(12)) and [len(numbers) for numbers in met] == [4, 4, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_before_its_step(value, tmp_path):
    with pytest.raises(NotFiniteError) as raised:
        walk(tmp_path, [3.0, value, 2.0], Journal(tmp_path, every=1e9))
    file = tmp_path / "Walk, failed.pt"
    advice = "look at its images, lower the rate, or use --precision fp32"
    assert str(raised.value) == f"Walk: the loss is {value} at step 2 (state in {file}); {advice}"
    order = read_torch(file)["order"]
    assert raised.value.images == order[4:8].tolist()
    assert read_torch(file)["parts"]["learner"]["0.weight"].item() == 0.75
    with pytest.raises(NotFiniteError, match="at step 1; look"):
        walk(tmp_path, [value])


class Noted(Journal):
    """A journal that saves nothing, and says which steps were taken and whether each was the last."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.steps: list[tuple[int, bool]] = []

    def step(self, stage: Stage, end: bool) -> None:
        self.steps.append((len(stage.losses), end))


def test_the_journal_hears_of_each_step_and_of_the_last(tmp_path):
    journal = Noted()
    walk(tmp_path, [3.0, 1.5, 2.0], journal)
    assert journal.steps == [(1, False), (2, False), (3, True)]


class CutError(Exception):
    """Stands in for a kill."""


class Cut(Journal):
    """A journal that saves at each step, and is cut off after some."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder, every=0)
        self.left = after

    def step(self, stage: Stage, end: bool) -> None:
        super().step(stage, end)
        self.left -= 1
        if self.left == 0:
            raise CutError


@pytest.mark.parametrize("kind", ["mlp", "tr"])
def test_a_head_goes_on_where_it_was_cut_off(kind, tmp_path):
    """Student, teacher, bank, optimiser, order and both generators are part of the state; no step is taken twice."""
    features = stored(torch.randn(8, 16, 6, generator=generator()), tmp_path)
    changes = {"head.kind": kind, "head.epochs": 3, "optimisation.cell": 2, "head.reduced_dim": 5}
    codebook = torch.randn(7, 6, generator=generator(1))

    def fitted(journal: Journal) -> tuple[nn.Module, list[float]]:
        return steps.fit_head(features, codebook, session_of(changes, journal))

    whole, losses = fitted(Journal())
    with pytest.raises(CutError):
        fitted(Cut(tmp_path, 3))
    rest = Noted(tmp_path)
    resumed, resumed_losses = fitted(rest)
    assert resumed_losses == losses and [number for number, _ in rest.steps] == [4, 5, 6]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


# Settings that step 2 and step 3 must heed.


def head_of(changes: dict[str, object], folder: Path) -> tuple[nn.Module, list[float]]:
    features = stored(torch.randn(4, 16, 6, generator=generator()), folder)
    small = {"head.kind": "mlp", "optimisation.cell": 2, "head.reduced_dim": 5, "head.dropout": 0.0}
    return steps.fit_head(features, torch.randn(7, 6, generator=generator(1)), session_of(small | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"head.temperature": 0.2},
        {"head.positive_threshold": 0.6},
        {"head.negative_threshold": -0.3},
        {"head.projection_dim": None},
        {"head.projection_dim": 64},
        {"optimisation.precision": "bf16"},
        {"optimisation.cell": 1},
    ],
)
def test_a_setting_of_the_contrast_changes_its_first_loss(change, tmp_path):
    assert head_of(change, tmp_path)[1][0] != head_of({}, tmp_path)[1][0]


@pytest.mark.parametrize("fast", [True, False])
def test_the_form_of_the_losses_is_a_setting_and_changes_nothing(fast, tmp_path, monkeypatch):
    called, plain = [], fast_contrast.concept_contrastive_loss
    monkeypatch.setattr(
        fast_contrast, "concept_contrastive_loss", lambda *a, **o: called.append(True) or plain(*a, **o)
    )
    losses = head_of({"optimisation.fast_losses": fast, "head.epochs": 3}, tmp_path)[1]
    assert bool(called) is fast
    assert losses == pytest.approx(head_of({"head.epochs": 3}, tmp_path)[1], rel=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_the_form_of_the_modularity_is_a_setting(fast, tmp_path, monkeypatch):
    called, form = [], fast_modularity.shared_concept
    monkeypatch.setattr(fast_modularity, "shared_concept", lambda membership: called.append(True) or form(membership))
    features = stored(torch.randn(4, 9, 6, generator=generator()), tmp_path)
    steps.fit_clusterbook(features, session_of({"optimisation.fast_losses": fast, "optimisation.cell": 1}))
    assert bool(called) is fast


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_compiled_is_the_students_branches(compiled, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: called.append(type(module).__name__))
    head_of({"optimisation.compiled": compiled}, tmp_path)
    assert called == ["TwoBranch"] * compiled


def test_outputs_of_a_head_are_those_of_its_evaluation(tmp_path):
    features = stored(torch.randn(5, 16, 6, generator=generator()), tmp_path)
    head = steps.build_head("mlp", 6, 4, 16, torch.eye(6), 0.5).train()
    outputs = module_outputs(head, features, tmp_path)
    assert outputs.shape == (5, 16, 4) and not outputs[:].requires_grad
    torch.testing.assert_close(outputs[:], head.eval()(features[:]).detach())


def test_a_linear_probe_of_unit_vectors_does_not_see_lengths(tmp_path):
    """Each patch at another length: the same probe of unit vectors, another one of vectors as they are, the default."""
    vectors = torch.randn(4, 16, 6, generator=generator())
    labels = np.arange(4 * 16).reshape(4, 4, 4) % 3
    for unit in (True, False, None):
        found, given = [], () if unit is None else (unit,)
        for name, scale in (("a", 1), ("b", 1 + torch.arange(64.0).view(4, 16, 1))):
            probe, _ = steps.fit_linear_probe(stored(scale * vectors, tmp_path / name), labels, 3, session_of(), *given)
            found.append(probe.classify.weight)
        assert torch.allclose(*found, atol=1e-5) is bool(unit)


@pytest.mark.parametrize("objective", ["max", "tanh", "quadratic"])
def test_the_clusterbooks_loss_is_the_setting(objective, tmp_path):
    """The first loss is the formula on the initial codes."""
    features = stored(torch.randn(4, 9, 6, generator=generator()), tmp_path)
    for fast in (True, False):
        changes = {"clusterbook.objective": objective, "clusterbook.temperature": 0.3, "optimisation.cell": 1}
        session = session_of(changes | {"optimisation.fast_losses": fast})
        codes = initial_codebook(features, loop.Session(session.config, generator(), session.device)).float()
        losses = steps.fit_clusterbook(features, session)[1]
        wanted = steps.mediator.modularity_loss(features[:], codes, 0.3, objective)
        assert losses[0] == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["modularity", "cosine"])
def test_the_cluster_probes_loss_is_the_setting(objective, tmp_path):
    features = stored(torch.randn(4, 9, 6, generator=generator()), tmp_path)
    session = session_of({"probe.objective": objective, "optimisation.cell": 1, "head.reduced_dim": 6})
    losses = steps.fit_cluster_probe(features, 3, session)[1]
    torch.manual_seed(0)
    probe = initial_probe(lambda: features, 3, loop.Session(session.config, generator(), session.device))
    modular = steps.mediator.modularity_loss(features[:], probe.centres)
    wanted = probe.loss(features[:]) if objective == "cosine" else modular
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-5)


# Beginnings.


def beginning(init: str, features: PatchStore, seed: int = 0, concepts: int = 6) -> Tensor:
    config = quick_config({"clusterbook.init": init, "clusterbook.concepts": concepts})
    return initial_codebook(features, loop.Session(config, generator(seed), torch.device("cpu")))


@pytest.fixture
def features(tmp_path) -> PatchStore:
    """Eight images of nine patches of four channels, all different and far from length 1."""
    return stored(5 + 3 * torch.randn(8, 9, 4, generator=generator(5)), tmp_path)


def test_uniform_codes_fill_their_interval(features):
    codes = 300 * beginning("uniform", features, concepts=300)
    assert codes.shape == (300, 4)
    assert -1 < codes.min() < -0.98 and 0.98 < codes.max() < 1 and abs(codes.mean()) < 0.1


def test_codes_of_patches_are_patches_of_length_one(features):
    codes, unit = beginning("patches", features, concepts=300), F.normalize(features[:].flatten(0, 1), dim=-1)
    distances = (codes[:, None] - unit).norm(dim=-1)
    assert distances.min(dim=1).values.max() < 1e-6
    assert len(distances.argmin(dim=1).unique()) > 60  # of 72: every image and patch can be drawn


def test_codes_of_kmeans_are_centres_of_unit_vectors(tmp_path):
    """Three directions at lengths of 1 to 9: the centres are the directions."""
    lengths = torch.arange(1.0, 10).view(1, 9, 1).expand(8, 9, 4)
    vectors = torch.eye(4)[torch.arange(72).view(8, 9) % 3] * lengths
    codes = beginning("kmeans", stored(vectors, tmp_path), concepts=3)
    torch.testing.assert_close(codes[codes.argmax(1).argsort()], torch.eye(4)[:3].double())


@pytest.mark.parametrize("init", ["uniform", "patches", "kmeans"])
def test_codes_are_drawn_by_the_generator_alone(init, features):
    torch.manual_seed(0)
    first = beginning(init, features)
    torch.manual_seed(1)
    assert torch.equal(first, beginning(init, features))
    assert not torch.equal(first, beginning(init, features, seed=1))


def test_a_probe_begins_at_noise_or_at_centres_of_the_outputs(features):
    """Noise reads no output."""

    def begun(init: str, outputs: Callable[[], PatchStore]) -> ClusterProbe:
        settings = quick_config({"head.reduced_dim": 4, "probe.init": init})
        return initial_probe(outputs, 3, loop.Session(settings, generator(), torch.device("cpu")))

    noise = begun("uniform", lambda: pytest.fail("noise reads no output"))
    assert noise.centres.shape == (3, 4) and noise.centres.abs().max() <= 1 / 3
    for init in ("kmeans", "minibatch"):
        centred, again = begun(init, lambda: features), begun(init, lambda: features)
        assert torch.equal(centred.centres, again.centres) and centred.centres.requires_grad
        assert 0.5 < centred.centres.norm(dim=1).min() <= centred.centres.norm(dim=1).max() < 1.01


# The whole fit.


@pytest.fixture
def quick_fit(few_scenes, small_backbone) -> Callable[..., train.Fitted]:
    """Fit eight scenes in two steps a stage; takes changes of the settings, labels or none, and `fit`'s options."""
    images, classes = few_scenes.images[:8], few_scenes.classes
    small = {"head.kind": "mlp", "clusterbook.concepts": 8, "head.epochs": 1, "probe.epochs": 1}

    def fit(changes: dict[str, object] | None = None, labelled: bool = True, **options: object) -> train.Fitted:
        split = Split("scenes", "train", classes, images, few_scenes.labels[:8] if labelled else None)
        return train.fit(quick_config(small | (changes or {})), split, small_backbone, **options)

    return fit


def test_a_fit_names_what_it_did_and_leaves_chance_alone(quick_fit, few_scenes):
    """Losses and seconds by stage; the segmenter predicts; the caller's random state is as before."""
    state = torch.get_rng_state()
    fitted = quick_fit()
    assert torch.equal(torch.get_rng_state(), state)
    assert [(name, len(losses)) for name, losses in fitted.losses.items()] == [
        ("clusterbook", 2),
        ("head", 2),
        ("cluster", 2),
        ("linear", 2),
    ]
    assert list(fitted.seconds) == ["features", "clusterbook", "head", "probes"]
    segmenter = fitted.segmenter
    assert not segmenter.training and not segmenter.head.reduce.dropout.training
    assert segmenter.size == 128 and segmenter.classes == few_scenes.classes


@pytest.mark.parametrize("precision, compiled", [("bf16", False), ("fp32", True)])
def test_a_fits_backbone_is_prepared_as_set(precision, compiled, quick_fit, small_backbone, monkeypatch):
    asked = []
    monkeypatch.setattr(small_backbone, "prepare", lambda *settings: asked.append(settings))
    monkeypatch.setattr(nn.Module, "compile", lambda module: None)
    quick_fit({"optimisation.precision": precision, "optimisation.compiled": compiled})
    assert asked == [(precision, compiled)]


def test_what_a_fit_shares_is_not_replaced_midway(quick_fit):
    for shared, name in (
        (session_of(), "config"),
        (Learner.adam(nn.Linear(1, 1), 0.1), "clip"),
        (quick_fit(), "losses"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(shared, name, None)


def test_a_third_step_begins_from_the_seed_whatever_the_head_drew(quick_fit):
    """Its generator and the global state are those of a fit whose head took no step."""
    states = []

    def third_step(head, features, split, session):
        states.append((session.generator.get_state(), torch.get_rng_state()))
        return steps.fit_probes(head, features, split, session)

    for epochs in (0, 2):
        quick_fit({"head.epochs": epochs}, third_step=third_step)
    assert all(torch.equal(*each) for each in zip(*states, strict=True))


@pytest.mark.parametrize("flow", ["as_released", "detached"])
def test_another_label_flow_wants_its_own_third_step(flow, quick_fit):
    with pytest.raises(UserError, match=f"label_flow: '{flow}' needs its own third step"):
        quick_fit({"probe.label_flow": flow})

    def third_step(head, features, split, session):
        return steps.fit_probes(head, features, split, session)

    assert quick_fit({"probe.label_flow": flow}, third_step=third_step).losses["linear"]


def test_a_clip_with_labels_wants_its_own_second_step(quick_fit):
    with pytest.raises(UserError, match="clip_with_labels needs its own second step"):
        quick_fit({"head.clip_with_labels": True})

    def second_step(features, codebook, session):
        return steps.fit_head(features, codebook, session)

    assert quick_fit({"head.clip_with_labels": True}, second_step=second_step).losses["head"]


def test_images_of_a_loss_that_is_not_finite_are_named(quick_fit):
    def third_step(head, features, split, session):
        raise NotFiniteError("the loss is nan", [2, 5])

    with pytest.raises(UserError, match=r"^the loss is nan: image 2, image 5$"):
        quick_fit(third_step=third_step)


def test_without_labels_the_linear_probe_does_not_learn(quick_fit):
    fitted = quick_fit(labelled=False)
    assert fitted.losses["linear"] == [] and len(fitted.losses["cluster"]) == 2
    assert fitted.segmenter.linear_probe.classify.weight.shape == (len(fitted.segmenter.classes), 16)
