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


class DistilledWholes(PhotoPretraining):
    """Distils whole views from the moving average (DINO, arXiv 2104.14294), and contrasts regions."""

    held: ClassVar[tuple[str, ...]] = (*PhotoPretraining.held, "whole_teacher", "whole_loss")
    objective: ClassVar[str] = "distillation of wholes, contrast of regions"

    def project(self, whole: int, parts: int) -> None:
        """Set the projections, those of wholes twice: of the network and of its moving average."""
        super().project(whole, parts)
        self.whole, self.whole_teacher, self.whole_loss = self.distilling(whole)

    def distilling(self, width: int) -> tuple[nn.Module, nn.Module, DINOLoss]:
        """Return a head for features of this width, the head of its teacher with the same weights, and their loss."""
        head, teacher = (
            DINOProjectionHead(width, self.config.hidden, BOTTLENECK, PROTOTYPES, batch_norm=True).to(self.device)
            for _ in range(2)
        )
        teacher.load_state_dict(head.state_dict())
        return head, teacher.requires_grad_(False), DINOLoss(PROTOTYPES).to(self.device)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the losses over wholes and over regions of this step's batch."""
        seen = self.seen()
        wholes, rows, photograph = self.described(self.network, seen)
        with torch.no_grad():
            taught, taught_rows, _ = self.described(self.average, seen)
        whole = self.distilled(self.whole, wholes, self.whole_teacher, taught, self.whole_loss)
        return whole, self.of_regions(rows, photograph, taught_rows)

    def of_regions(self, rows: Tensor, photograph: Tensor, taught: Tensor) -> Tensor:
        """Return the loss over regions, given the features of both networks (2M, C)."""
        return self.contrast_of_regions(rows, photograph)

    def distilled(self, head: nn.Module, rows: Tensor, teacher: nn.Module, taught: Tensor, loss: DINOLoss) -> Tensor:
        """Return the cross-entropy of one view's prototypes to those that the teacher sees in the other."""
        with autocast(self.precision, self.device):
            student = head(rows).float()
            with torch.no_grad():
                target = teacher(taught).float()
        return loss(list(target.chunk(2)), list(student.chunk(2)))

    def follow(self) -> None:
        """Move the average and the teacher's head."""
        super().follow()
        update_momentum(self.whole, self.whole_teacher, self.config.average)


class Distilled(DistilledWholes):
    """Distils wholes and regions: each region's mean is a token, as patches are in iBOT (arXiv 2111.07832)."""

    held: ClassVar[tuple[str, ...]] = (*DistilledWholes.held, "parts_teacher", "parts_loss")
    objective: ClassVar[str] = "distillation of wholes and of regions"

    def project(self, whole: int, parts: int) -> None:
        """Set the projections of wholes and of regions, each for network and moving average."""
        super().project(whole, parts)
        self.parts, self.parts_teacher, self.parts_loss = self.distilling(parts)

    def of_regions(self, rows: Tensor, photograph: Tensor, taught: Tensor) -> Tensor:
        """Return the loss over regions, given the features of both networks (2M, C)."""
        return self.distilled(self.parts, rows, self.parts_teacher, taught, self.parts_loss)

    def follow(self) -> None:
        """Move the average and the teachers' heads."""
        super().follow()
        update_momentum(self.parts, self.parts_teacher, self.config.average)
