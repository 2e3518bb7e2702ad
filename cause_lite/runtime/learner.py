"""Take gradient steps: clipped, with rates that halve, loss scaling, and gradients averaged over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cause_lite.runtime import parallel
from cause_lite.runtime.journal import Stateful


@dataclass(frozen=True)
class Learner:
    """What one stage of training changes, and how.

    Parameters
    ----------
    modules, optimizers
        Everything whose gradients step, and the optimisers that hold its parameters.
    clipped, clip
        The module whose gradient is cut to the norm `clip`, by the first optimiser; None for no clipping.
    halve_every
        Epochs after which rates halve; None for never.
    other_state
        What else a resumed run needs, by name.
    """

    modules: nn.ModuleList
    optimizers: Sequence[torch.optim.Optimizer]
    clipped: nn.Module | None = None
    clip: float | None = None
    halve_every: int | None = None
    other_state: Mapping[str, Stateful] = field(default_factory=dict)
    _rates: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._rates.extend(optimizer.param_groups[0]["lr"] for optimizer in self.optimizers)

    @classmethod
    def adam(
        cls,
        module: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.0,
        clip: float | None = None,
        halve_every: int | None = None,
        other_state: Mapping[str, Stateful] | None = None,
    ) -> Learner:
        """Return a learner of one module by Adam."""
        optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
        return cls(nn.ModuleList([module]), [optimizer], module, clip, halve_every, other_state or {})

    def parts(self) -> dict[str, Stateful]:
        """Return everything that a resumed run needs, by name."""
        optimizers = {f"optimizer{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return {"learner": self.modules, **self.other_state, **optimizers}

    def set_rates(self, epoch: int) -> None:
        """Set the learning rates of an epoch, which counts from 0."""
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * (0.5 ** (epoch // self.halve_every) if self.halve_every else 1)

    def step(self, loss: Tensor, scaler: torch.amp.GradScaler) -> None:
        """Take one step down the gradient of the mean loss over processes."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        parallel.average_gradients(self.modules.parameters())
        if self.clipped is not None and self.clip:
            scaler.unscale_(self.optimizers[0])
            nn.utils.clip_grad_norm_(self.clipped.parameters(), self.clip)
        for optimizer in self.optimizers:
            scaler.step(optimizer)
        scaler.update()
