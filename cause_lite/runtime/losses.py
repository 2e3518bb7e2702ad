"""Read the losses of a stage off the device, and stop at one that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cause_lite.runtime import parallel
from cause_lite.runtime.device import works_ahead
from cause_lite.runtime.files import UserError
from cause_lite.runtime.journal import Journal, Stage

READ_EVERY = 50  # steps after which the losses of a device that works ahead are read


class NotFiniteError(UserError):
    """A loss is NaN or infinite; `images` holds the numbers of the images that it was computed on."""

    def __init__(self, message: str, images: list[int]) -> None:
        super().__init__(message)
        self.images = images


def steps_between_reads(device: torch.device) -> int:
    """Return the steps after which losses are read: each, but where a reading waits for the device."""
    return READ_EVERY if works_ahead(device) else 1


def read_losses(stage: Stage, batches: Sequence[Tensor], journal: Journal) -> None:
    """Read the losses that are still on the device; raise NotFiniteError at the first that is NaN or infinite."""
    first = 1 + len(stage.losses)
    for step, loss in enumerate(stage.read(), first):
        if not math.isfinite(loss):
            file = journal.save_failed(stage)
            where = f"at step {step}" + (f" (state in {file})" if file else "")
            advice = "look at its images, lower the rate, or use --precision fp32"
            images = parallel.share(batches[step - 1]).tolist()
            raise NotFiniteError(f"{stage.name}: the loss is {loss} {where}; {advice}", images)
