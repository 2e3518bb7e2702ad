"""A pre-training without labels, on any device: its settings, its steps, and the states that it goes on from."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.runtime.files import UserError, read_torch, write_whole


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Settings of a pre-training, which decide its weights. Rates are per step."""

    seed: int = 0
    steps: int
    learning_rate: float
    weight_decay: float
    warmup: int = 100
    average: float = 0.98  # decay of the weights' moving average, which ships
    clip: float

    @property
    def end(self) -> int:
        """The last step. Those after `steps`, if any, are a branch: the run can be made longer before it."""
        return self.steps

    def decided(self, step: int) -> dict:
        """Return the settings that decided the steps before this one."""
        return asdict(self)

    @abstractmethod
    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""

    @abstractmethod
    def start(self, device: str) -> Pretraining:
        """Return a run at its first step. Raises UserError where there are no images, or no such device."""


class Pretraining(ABC):
    """A network, the moving average that ships, projections and optimiser; resumable after any step.

    A subclass builds the network and its projections, computes losses, and says how the average is exported.
    """

    generator: torch.Generator
    name: ClassVar[str]  # of the files: NAME.safetensors and NAME.json
    held: ClassVar[tuple[str, ...]]  # attributes with the network, the average and projections, in this order
    repeats: ClassVar[bool]  # whether a processor is to work on one thread, where bits repeat

    def __init__(self, config: Recipe, count: int, device: torch.device) -> None:
        torch.manual_seed(config.seed)  # timm and lightly draw their initial weights from the global state
        self.config, self.device = config, device
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[float, ...]] = []  # the step and its losses
        self.pools = [(0, count)]  # the number of images, and from which step on

    def hold(self, network: nn.Module, *projections: nn.Module) -> None:
        """Keep the network, a copy of it as the average, and its projections; train all but the average."""
        average = copy.deepcopy(network).requires_grad_(False)
        for name, module in zip(self.held, (network, average, *projections), strict=True):
            setattr(self, name, module)
        weights = [p for module in (network, *projections) for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, weight_decay=self.config.weight_decay)

    @abstractmethod
    def losses(self) -> tuple[Tensor, ...]:
        """Return the losses of this step's batch, which are added up."""

    @abstractmethod
    def follow(self) -> None:
        """Move the average towards the weights."""

    @abstractmethod
    def exported(self) -> tuple[dict[str, Tensor], dict]:
        """Return the tensors that ship, and the fields of their card that only this kind has."""

    def advance(self) -> None:
        """Take one step of training, and note its losses."""
        start, losses = time.perf_counter(), self.losses()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.config.clip)
        self.optimizer.step()
        self.follow()
        self.step += 1
        self.curve.append((self.step, *(round(loss.item(), 4) for loss in losses)))
        self.seconds += time.perf_counter() - start

    def save(self, path: Path) -> None:
        """Write everything that a later run needs to go on, and the settings that decided the steps so far."""
        state = {name: getattr(self, name).state_dict() for name in (*self.held, "optimizer")}
        state |= {name: getattr(self, name) for name in ("step", "curve", "seconds", "pools")}
        state |= {"random": self.generator.get_state(), "recipe": self.config.decided(self.step)}
        write_whole(path, partial(torch.save, state))

    def resume(self, path: Path, last: float = math.inf) -> None:
        """Go on from a saved file, of step `last` at most; the images may be others, which `pools` tells.

        Raises UserError when the file is damaged, of another recipe, or of a run that is longer than the one asked for.
        """
        state = cast(dict, read_torch(path))
        try:  # states of earlier versions call the recipe `config`, or lack `random` or `pools`
            step = state["step"]
            if step > last:
                raise UserError(f"{path}: has gone on to step {step:,}; ask for as many, or name another folder")
            check_recipe(state.get("recipe", state.get("config", {})), self.config.decided(step))
            for name in (*self.held, "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.curve, self.seconds = step, state["curve"], state["seconds"]
            self.generator.set_state(state.get("random", self.generator.get_state()))
            (_, count), self.pools = self.pools[-1], state.get("pools", self.pools)
            if count != self.pools[-1][1]:
                self.pools = [*self.pools, (step, count)]
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = f"is of another recipe ({str(error)[:200]}); name another folder, or remove it"
            raise UserError(f"{path}: {reason}") from error


def check_recipe(made: dict, wanted: dict) -> None:
    """Raise ValueError, naming the settings, when a run was begun with others than those that are wanted."""
    recorded = {name: made.get(name, "not recorded") for name in wanted}
    changed = [f"{name} was {recorded[name]} and is {each}" for name, each in wanted.items() if recorded[name] != each]
    if changed:
        raise ValueError("; ".join(changed))


def spot_contrast(first: Tensor, second: Tensor, image: Tensor, temperature: float) -> Tensor:
    """Return the symmetric InfoNCE between matching rows of two (M, J), against rows of other images (M,)."""
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    same_image = (image[:, None] == image[None, :]).fill_diagonal_(False)
    similarity = similarity.masked_fill(same_image, -torch.inf)
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
