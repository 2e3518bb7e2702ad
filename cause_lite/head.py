"""Step 2's segmentation heads: patch features (B, P, D) -> segment features (B, P, R), and the EMA teacher.

Training looks at one patch of each cell only. `select` (B, P, D) -> (B, Q, D) takes those: a head computes
their outputs alone, while all patches are still attended to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from cause_lite.mediator import quantize

Selection = Callable[[Tensor], Tensor]


def all_patches(features: Tensor) -> Tensor:
    """Select every patch."""
    return features


class Dropout(nn.Dropout):
    """Dropout whose masks on a CPU are the same on every kind of processor, which torch's own are not."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, in training with a share `p` of it at 0 and the rest scaled up."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        return x * (torch.rand(x.shape) >= self.p) / (1 - self.p)


class Attention(nn.Module):
    """Attention of one head, with the parameters of torch's module, and with `Dropout` on its weights."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj, self.dropout = nn.Linear(dim, dim), Dropout(dropout)
        nn.init.zeros_(self.out_proj.bias)

    def weights(self, queries: Float[Tensor, "b q d"], keys: Float[Tensor, "b p d"]) -> Float[Tensor, "b q p"]:
        """Return how much each query reads from each place, which adds up to 1."""
        (of_query, of_key, _), bias = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)[0]
        scaled = F.linear(queries, of_query, bias) / queries.shape[-1] ** 0.5
        # A bias of keys adds the same to all products of a query: its gradient would be rounding, enlarged by Adam.
        return (scaled @ F.linear(keys, of_key).mT).softmax(dim=-1)

    def forward(
        self, queries: Float[Tensor, "b q d"], keys: Float[Tensor, "b p d"], values: Float[Tensor, "b p d"]
    ) -> Float[Tensor, "b q d"]:
        """Return what each query reads."""
        read = F.linear(values, self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2])
        return self.out_proj(self.dropout(self.weights(queries, keys)) @ read)


class TwoBranch(nn.Module):
    """A linear branch plus a two-layer one, each on its own dropout of the input (STEGO's head)."""

    def __init__(self, dim: int, reduced_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, reduced_dim)
        self.nonlinear = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, reduced_dim))
        self.dropout = Dropout(dropout)

    def forward(self, features: Float[Tensor, "b p d"]) -> Float[Tensor, "b p r"]:
        """Return the sum of both branches."""
        return self.linear(self.dropout(features)) + self.nonlinear(self.dropout(features))


class MLPHead(nn.Module):
    """CAUSE-MLP: each patch on its own; the clusterbook only decides its positives and negatives."""

    def __init__(self, dim: int, reduced_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.reduce = TwoBranch(dim, reduced_dim, dropout)

    def forward(self, features: Float[Tensor, "b p d"], select: Selection = all_patches) -> Float[Tensor, "b q r"]:
        """Return the segment features of the selected patches."""
        return self.reduce(select(features))


class ConceptDecoder(nn.Module):
    """One post-norm decoder layer whose position enters queries and keys, never values (as in DETR)."""

    def __init__(self, dim: int, dropout: float, feedforward: int = 2048) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = Attention(dim, dropout), Attention(dim, dropout)
        self.expand, self.contract = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        concepts: Float[Tensor, "b p d"],
        position: Float[Tensor, "p d"],
        features: Float[Tensor, "b p d"],
        select: Selection,
    ) -> Float[Tensor, "b q d"]:
        """Let the selected concepts attend to all concepts, then to all features."""
        placed = concepts + position
        mixed = self.self_attention(select(placed), placed, concepts)
        concepts, position = select(concepts), select(position.expand_as(concepts))
        concepts = self.norm1(concepts + self.dropout(mixed))
        read = self.cross_attention(concepts + position, features, features)
        concepts = self.norm2(concepts + self.dropout(read))
        wide = self.dropout(torch.relu(self.expand(concepts)))
        return self.norm3(concepts + self.dropout(self.contract(wide)))


class TRHead(nn.Module):
    """CAUSE-TR: concepts, as queries with a learned position, attend to each other and to the features.

    The codebook (K, D) is a buffer: steps after the first leave it alone. `num_patches` must be a square; at another
    resolution the positions are resized bilinearly.
    """

    codebook: Tensor

    def __init__(
        self, dim: int, reduced_dim: int, num_patches: int, codebook: Float[Tensor, "k d"], dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook.detach().clone())
        self.query_position = nn.Parameter(torch.randn(num_patches, dim))
        self.decoder = ConceptDecoder(dim, dropout)
        self.reduce = TwoBranch(dim, reduced_dim, dropout)

    def positions(self, patches: int) -> Float[Tensor, "p d"]:
        """Return the positions of a square grid of patches; warn where they must be resized."""
        trained = len(self.query_position)
        if patches == trained:
            return self.query_position
        message = (
            f"this TR head was trained on {trained} patches and runs on {patches}: resized positions cost accuracy"
        )
        warnings.warn(message, stacklevel=2)
        new, old = ([round(count**0.5)] * 2 for count in (patches, trained))
        return resample_abs_pos_embed(self.query_position[None], new, old, 0, "bilinear", antialias=False)[0]

    def forward(self, features: Float[Tensor, "b p d"], select: Selection = all_patches) -> Float[Tensor, "b q r"]:
        """Return the segment features of the selected patches, from the features and their decoded concepts."""
        concepts = quantize(features, self.codebook)[0]
        decoded = self.decoder(concepts, self.positions(features.shape[1]), features, select)
        return self.reduce(select(features) + decoded)


Head = MLPHead | TRHead


def build_head(
    kind: str, dim: int, reduced_dim: int, num_patches: int, codebook: Float[Tensor, "k d"], dropout: float = 0.1
) -> Head:
    """Return an untrained head of a kind, `mlp` or `tr`."""
    if kind == "mlp":
        return MLPHead(dim, reduced_dim, dropout)
    return TRHead(dim, reduced_dim, num_patches, codebook, dropout)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float = 0.99) -> None:
    """Move the teacher towards the student in place: teacher <- decay * teacher + (1 - decay) * student."""
    slow, fast = zip(*zip(teacher.parameters(), student.parameters(), strict=True), strict=True)
    torch._foreach_mul_(slow, decay)
    torch._foreach_add_(slow, fast, alpha=1 - decay)
