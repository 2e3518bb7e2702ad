"""Five training steps of both heads equal those of the published implementation, by the code that fits.

The reference has no dropout and no bank; it was given its draws, its first weights and its images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick_config, relative_error
from torch import Tensor, nn

from cause_lite import loop, mediator, steps
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.checkpoints.released_files import head_state
from cause_lite.config import FitConfig
from cause_lite.datasets import Split
from cause_lite.methods import as_released

LabelledHeadTraining = as_released.LabelledHeadTraining
CASES = pytest.mark.parametrize("case", ["mlp_0", "mlp_1", "tr_0", "tr_1"])
LOSS, OUTPUT = 1e-5, 1e-4  # relative


@dataclass
class Trajectory:
    """What step 2 did: the contrast and the gradient's norm of each step, and its state after the last."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    trainings: list[steps.HeadTraining] = field(default_factory=list)


def settings_of(given: dict[str, Tensor], kind: str, fast: bool) -> FitConfig:
    projection = given["start/projection_head.f.weight"]
    numbers = {
        "learning_rate": "lr",
        "weight_decay": "weight_decay",
        "clip": "clip",
        "ema_decay": "decay",
        "temperature": "temp",
        "positive_threshold": "pos_thresh",
        "negative_threshold": "neg_thresh",
    }
    sizes = {"head.kind": kind, "head.reduced_dim": projection.shape[1], "head.projection_dim": len(projection)}
    plain = {"head.dropout": 0.0, "head.bank_capacity": None, "head.epochs": 1, "optimisation.fast_losses": fast}
    batch = {"optimisation.cell": int(given["cell"]), "optimisation.batch_size": given["feat"].shape[1]}
    return quick_config(
        sizes | plain | batch | {f"head.{ours}": float(given[theirs]) for ours, theirs in numbers.items()}
    )


def weights(given: dict[str, Tensor], when: str, who: str) -> dict[str, dict[str, Tensor]]:
    """The reference's weights of `head` or `head_ema` and its projection, under our names."""
    named = {name.removeprefix(f"{when}/"): value for name, value in given.items() if name.startswith(f"{when}/")}
    projection = f"projection_{who}.f"
    return {
        "head": head_state(named, who),
        "projection": {part: named[f"{projection}.{part}"].squeeze() for part in ("weight", "bias")},
    }


def load(module: steps.ProjectedHead, state: dict[str, dict[str, Tensor]]) -> steps.ProjectedHead:
    for part, values in state.items():
        loaded = getattr(module, part).load_state_dict(values, strict=False)
        assert not loaded.unexpected_keys and set(loaded.missing_keys) <= {"codebook"}
    return module


@pytest.fixture
def watched(monkeypatch) -> Callable[[dict[str, Tensor]], Trajectory]:
    """Give step 2 the reference's images in order and its draws; note what it does."""

    def watch(given: dict[str, Tensor]) -> Trajectory:
        found, draws = Trajectory(), iter(given["order"])
        contrast, clip = steps.HeadTraining.loss_of, nn.utils.clip_grad_norm_

        def noted_loss(training: steps.HeadTraining, *batch: Tensor) -> Tensor:
            loss = contrast(training, *batch)
            found.losses.append(loss.item())
            return loss

        def noted_clip(*arguments: object, **options: object) -> Tensor:
            found.norms.append(clip(*arguments, **options).item())
            return torch.tensor(found.norms[-1])

        monkeypatch.setattr(steps.HeadTraining, "loss_of", noted_loss)
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", noted_clip)
        monkeypatch.setattr(mediator, "draw_cells", lambda *_: next(draws))
        monkeypatch.setattr(loop, "training_order", lambda count, *_: torch.arange(count))
        return found

    return watch


def begun(kind: type[steps.HeadTraining], given: dict[str, Tensor], found: Trajectory) -> Callable:
    """Return what builds step 2's state, from the reference's first weights."""

    def build(*arguments: object, **options: object) -> steps.HeadTraining:
        training = kind(*arguments, **options)
        load(training.student, weights(given, "start", "head"))
        load(training.teacher, weights(given, "start", "head_ema"))
        if isinstance(training, LabelledHeadTraining):
            training.linear.classify.load_state_dict(linear_weights(given, "start"))
        found.trainings.append(training)
        return training

    return build


def linear_weights(given: dict[str, Tensor], when: str) -> dict[str, Tensor]:
    return {part: given[f"{when}/linear.f.{part}"].squeeze() for part in ("weight", "bias")}


def given_to(case: str, given: dict[str, Tensor], fast: bool, folder: Path) -> tuple[PatchStore, Tensor, loop.Session]:
    """The images' features, the codebook and the settings of a case."""
    vectors = given["feat"].flatten(0, 1)
    store = PatchStore(folder / "features", vectors.shape, torch.float32, vectors.__getitem__, "Features")
    settings = settings_of(given, case.split("_")[0], fast)
    return store, given["codebook"], loop.Session(settings, torch.Generator(), torch.device("cpu"))


def assert_same_outputs(
    module: steps.ProjectedHead, state: dict[str, dict[str, Tensor]], given: dict[str, Tensor]
) -> None:
    """Compare as functions: the bias of attention's keys has no gradient but rounding, which Adam turns into steps."""
    vectors, outputs = given["feat"].flatten(0, 1), []
    with torch.no_grad():
        for _ in range(2):
            head = module.head.eval()(vectors)
            outputs.append((head, module.projection(head)))
            load(module, state)
    for ours, theirs in zip(*outputs, strict=True):
        assert relative_error(ours, theirs) < OUTPUT


def assert_same_steps(found: Trajectory, given: dict[str, Tensor], when: str) -> None:
    torch.testing.assert_close(torch.tensor(found.losses).double(), given[f"{when}/loss"], rtol=LOSS, atol=0)
    torch.testing.assert_close(torch.tensor(found.norms).double(), given[f"{when}/norm"], rtol=OUTPUT, atol=0)
    (training,) = found.trainings
    assert_same_outputs(training.student, weights(given, when, "head"), given)
    assert_same_outputs(training.teacher, weights(given, when, "head_ema"), given)


@CASES
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_five_steps_of_the_contrast(reference, watched, case, fast, tmp_path):
    given = reference(f"trajectory_{case}")
    found, start = watched(given), given_to(case, given, fast, tmp_path)
    head, losses = steps.fit_head(*start, begun(steps.HeadTraining, given, found))
    assert head is found.trainings[0].teacher.head and losses == pytest.approx(found.losses)
    assert_same_steps(found, given, "front")


@CASES
@pytest.mark.filterwarnings("ignore:label_flow")
def test_five_steps_with_the_labelled_loss_as_released(reference, watched, case, tmp_path, monkeypatch):
    """The labels reach the student by the clip alone, which spans both losses' gradients."""
    given = reference(f"trajectory_{case}")
    found, start = watched(given), given_to(case, given, True, tmp_path)
    labels, classes = given["label"].flatten(0, 1).numpy(), len(given["start/linear.f.bias"])
    split = Split("reference", "train", tuple(map(str, range(classes))), np.zeros((*labels.shape, 3), np.uint8), labels)
    monkeypatch.setattr(as_released, "LabelledHeadTraining", begun(LabelledHeadTraining, given, found))
    as_released.fit_head(*start, split)
    assert_same_steps(found, given, "joint")
    (training,) = found.trainings
    for part, value in linear_weights(given, "joint").items():
        assert relative_error(getattr(training.linear.classify, part).detach(), value) < OUTPUT
