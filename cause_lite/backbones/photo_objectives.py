"""Other objectives of pre-training on photographs, for short trials: a part alone, and self-distillation.

What ships learns from `PhotoPretraining`'s own objective.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from cause_lite.backbones.pretrain_photos import PhotoPretraining
from cause_lite.runtime.precision import autocast

PROTOTYPES = 1024  # of a distillation; DINO's 65,536 are for 27 times as many photographs
BOTTLENECK = 128


class Wholes(PhotoPretraining):
    """Contrasts whole views alone."""

    objective: ClassVar[str] = "contrast of wholes"

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the loss over wholes, and 0."""
        wholes, _, _ = self.described(self.network, self.seen())
        return self.contrast_of_wholes(wholes), wholes.new_zeros(())


class Regions(PhotoPretraining):
    """Contrasts regions alone."""

    objective: ClassVar[str] = "contrast of regions"

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return 0, and the loss over regions."""
        wholes, rows, photograph = self.described(self.network, self.seen())
        return wholes.new_zeros(()), self.contrast_of_regions(rows, photograph)


class Distillation(nn.Module):
    """A projection to prototypes, that of the teacher, which follows it, and their loss (DINO, arXiv 2104.14294)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.head, self.teacher = (
            DINOProjectionHead(width, hidden, BOTTLENECK, PROTOTYPES, batch_norm=True) for _ in range(2)
        )
        self.teacher.load_state_dict(self.head.state_dict())
        self.teacher.requires_grad_(False)
        self.loss = DINOLoss(PROTOTYPES)


class DistilledWholes(PhotoPretraining):
    """Distils whole views from the moving average, and contrasts regions."""

    objective: ClassVar[str] = "distillation of wholes, contrast of regions"
    whole: Distillation

    def project(self, whole: int, parts: int) -> None:
        """Set the projections of a whole view and of a region, whose features have these widths."""
        super().project(whole, parts)
        self.whole = Distillation(whole, self.config.hidden).to(self.device)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the losses over wholes and over regions of this step's batch."""
        seen = self.seen()
        wholes, rows, photograph = self.described(self.network, seen)
        with torch.no_grad():
            taught, taught_rows, _ = self.described(self.average, seen)
        return self.distilled(self.whole, wholes, taught), self.of_regions(rows, photograph, taught_rows)

    def of_regions(self, rows: Tensor, photograph: Tensor, taught: Tensor) -> Tensor:
        """Return the loss over regions, given the features of both networks (2M, C)."""
        return self.contrast_of_regions(rows, photograph)

    def distilled(self, by: Distillation, rows: Tensor, taught: Tensor) -> Tensor:
        """Return the cross-entropy of one view's prototypes to those that the teacher sees in the other."""
        with autocast(self.precision, self.device):
            student = by.head(rows).float()
            with torch.no_grad():
                target = by.teacher(taught).float()
        return by.loss(list(target.chunk(2)), list(student.chunk(2)))

    def follow(self) -> None:
        """Move the average and the teachers' heads."""
        super().follow()
        for by in (self.whole, self.parts):
            if isinstance(by, Distillation):
                update_momentum(by.head, by.teacher, self.config.average)


class Distilled(DistilledWholes):
    """Distils wholes and regions: each region's mean is a token, as patches are in iBOT (arXiv 2111.07832)."""

    objective: ClassVar[str] = "distillation of wholes and of regions"
    parts: Distillation

    def project(self, whole: int, parts: int) -> None:
        """Set the projections of a whole view and of a region, whose features have these widths."""
        super().project(whole, parts)
        self.parts = Distillation(parts, self.config.hidden).to(self.device)

    def of_regions(self, rows: Tensor, photograph: Tensor, taught: Tensor) -> Tensor:
        """Return the loss over regions, given the features of both networks (2M, C)."""
        return self.distilled(self.parts, rows, taught)
