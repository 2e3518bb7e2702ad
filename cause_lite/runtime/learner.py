"""Take gradient steps: clipped, with rates that halve, loss scaling, and gradients averaged over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cause_lite.runtime import parallel


@dataclass(frozen=True)
class Learner:
    """Modules that one stage of training changes, and the optimisers that hold their parameters.

    The gradient of the module `clipped`, if any, is cut to the norm `clip`; the first optimiser must hold it. Rates
    halve after `halve_every` epochs; None: never. `other_state` is what else a resumed run needs, by name.
    """

    modules: nn.ModuleList
    optimizers: Sequence[torch.optim.Optimizer]
    clipped: nn.Module | None = None
    clip: float | None = None
    halve_every: int | None = None
    other_state: Mapping[str, Any] = field(default_factory=dict)
    _rates: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._rates.extend(optimizer.param_groups[0]["lr"] for optimizer in self.optimizers)

    @classmethod
    def adam(
        cls, module: nn.Module, rate: float, weight_decay: float = 0.0, clip: float | None = None, **options: Any
    ) -> Learner:
        """Return a learner of one module by Adam; `options` are the learner's, such as `halve_every`."""
        optimizer = torch.optim.Adam(module.parameters(), lr=rate, weight_decay=weight_decay)
        return cls(nn.ModuleList([module]), [optimizer], module, clip, **options)

    def parts(self) -> dict[str, Any]:
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
