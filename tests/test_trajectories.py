"""Five training steps of both heads equal those of the published implementation, by the code that fits.

The reference has no dropout and no bank; it was given its draws, its first weights and its images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from conftest import quick_config, relative_error
from torch import Tensor, nn

from cause_lite import loop, mediator, steps
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.checkpoints.released_files import head_state
from cause_lite.config import FitConfig
from cause_lite.lab.as_released import supervised_loss
from cause_lite.probe import LinearProbe

CASES = pytest.mark.parametrize("case", ["mlp_0", "mlp_1", "tr_0", "tr_1"])
LOSS, OUTPUT = 1e-5, 1e-4  # relative


@dataclass
class Trajectory:
    """What the fit did: the loss and the gradient's norm of each step, and both heads with their projections."""

    losses: list[float]
    norms: list[float] = field(default_factory=list)
    heads: dict[str, steps.ProjectedHead] = field(default_factory=dict)


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


def trained(given: dict[str, Tensor], kind: str, fast: bool, folder, monkeypatch) -> Trajectory:
    """Run step 2 on the reference's images, draws and first weights."""
    vectors, found, clip = given["feat"].flatten(0, 1), Trajectory([]), nn.utils.clip_grad_norm_
    draws, head_training = iter(given["order"]), steps.HeadTraining

    def started(*arguments: object, **options: object) -> steps.HeadTraining:
        training = head_training(*arguments, **options)
        for who, name in (("student", "head"), ("teacher", "head_ema")):
            found.heads[who] = load(getattr(training, who), weights(given, "start", name))
        return training

    def noted(*arguments: object, **options: object) -> Tensor:
        found.norms.append(float(clip(*arguments, **options)))
        return torch.tensor(found.norms[-1])

    monkeypatch.setattr(steps, "HeadTraining", started)
    monkeypatch.setattr(mediator, "draw_cells", lambda *_: next(draws))
    monkeypatch.setattr(loop, "training_order", lambda count, *_: torch.arange(count))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", noted)
    store = PatchStore(folder / "features", vectors.shape, torch.float32, vectors.__getitem__, "Features")
    session = loop.Session(settings_of(given, kind, fast), torch.Generator(), torch.device("cpu"))
    head, found.losses = steps.fit_head(store, given["codebook"], session)
    assert head is found.heads["teacher"].head
    return found


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


@CASES
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_five_steps_of_the_contrast(reference, case, fast, tmp_path, monkeypatch):
    given = reference(f"trajectory_{case}")
    found = trained(given, case.split("_")[0], fast, tmp_path, monkeypatch)
    torch.testing.assert_close(torch.tensor(found.losses).double(), given["front/loss"], rtol=LOSS, atol=0)
    torch.testing.assert_close(torch.tensor(found.norms).double(), given["front/norm"], rtol=OUTPUT, atol=0)
    for who, name in (("student", "head"), ("teacher", "head_ema")):
        assert_same_outputs(found.heads[who], weights(given, "front", name), given)


def with_labels(given: dict[str, Tensor], contrasts: list[float]) -> type[steps.HeadTraining]:
    """Step 2 as released: a linear probe reads the teacher, and its loss, clip and optimiser are the student's too."""

    class LabelledTraining(steps.HeadTraining):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            first = {part: given[f"start/linear.f.{part}"].squeeze() for part in ("weight", "bias")}
            self.student.linear = LinearProbe(*first["weight"].shape)
            self.student.linear.classify.load_state_dict(first)

        def loss_of(self, numbers: Tensor, batch: Tensor) -> Tensor:
            contrast = super().loss_of(numbers, batch)
            contrasts.append(contrast.item())
            segments = self.teacher.head(batch)
            return contrast + supervised_loss(self.student.linear, segments, given["label"].flatten(0, 1)[numbers])

        def after_step(self) -> None:
            probe = self.student.linear
            del self.student.linear
            super().after_step()
            self.student.linear = probe

    return LabelledTraining


@CASES
def test_five_steps_with_the_labelled_loss_as_released(reference, case, tmp_path, monkeypatch):
    """The labels reach the student by the clip alone, which spans both losses' gradients."""
    given, contrasts = reference(f"trajectory_{case}"), []
    monkeypatch.setattr(steps, "HeadTraining", with_labels(given, contrasts))
    found = trained(given, case.split("_")[0], True, tmp_path, monkeypatch)
    torch.testing.assert_close(torch.tensor(contrasts).double(), given["joint/loss"], rtol=LOSS, atol=0)
    torch.testing.assert_close(torch.tensor(found.norms).double(), given["joint/norm"], rtol=OUTPUT, atol=0)
    for who, name in (("student", "head"), ("teacher", "head_ema")):
        assert_same_outputs(found.heads[who], weights(given, "joint", name), given)
    probe = found.heads["student"].linear.classify
    for part in ("weight", "bias"):
        assert relative_error(getattr(probe, part).detach(), given[f"joint/linear.f.{part}"].squeeze()) < OUTPUT
