"""Turn sums over keys into the InfoNCE of each anchor and its slope, with which both forms of the contrast end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class KeySums:
    """What an anchor sums over its keys.

    `partition` sums the odds exp((similarity - 1) / temperature) of positives and negatives, `pull` their vectors
    weighted by these odds, `attraction` the vectors of the positives, of which there are `count`.
    """

    partition: Float[Tensor, " n"]
    pull: Float[Tensor, "n r"]
    attraction: Float[Tensor, "n r"]
    count: Float[Tensor, " n"]

    def finish(
        self, anchors: Float[Tensor, "n r"], temperature: float
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n r"], Float[Tensor, " n"]]:
        """Return the InfoNCE of each anchor, its gradient, and the weight that each of its odds has in that."""
        partition = self.partition.clamp(min=torch.finfo(anchors.dtype).tiny)
        pairs = (anchors * self.attraction).sum(1) / temperature
        total = self.count * (partition.log() + 1 / temperature) - pairs
        slope = ((self.count / partition)[:, None] * self.pull - self.attraction) / temperature
        return total, slope, self.count / partition
