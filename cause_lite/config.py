"""Everything that decides a fit, in one dataclass. Defaults are the release's (its code, commit ee0aa84)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from cause_lite.runtime.files import UserError

CHOICES = {
    "head": ("tr", "mlp"),
    "clusterbook_init": ("uniform", "patches", "kmeans"),
    "probe_init": ("uniform", "kmeans"),
    "probe_objective": ("modularity", "cosine"),
    "objective": ("max", "quadratic", "tanh"),
    "label_flow": ("clean", "as_released"),
    "ddp": ("averaged", "as_released"),
    "precision": ("fp32", "bf16", "fp16"),
    "crops": ("none", "five", "double", "super"),
    "fit": ("centre", "squash"),
    "resize": ("nearest", "bilinear"),
}


@dataclass(frozen=True)
class FitConfig:
    """The settings of a fit; `batch_size` is that of all processes together.

    Raises UserError naming the field whose value is none of its choices or of another type.
    """

    data: str = "scenes"
    backbone: str = "scenes"
    head: str = "tr"
    seed: int = 0
    size: int = 320  # pixels a side in training
    eval_size: int = 0  # in evaluation; 0: as in training
    crops: str = "none"  # of each training image: five (half size), double (20), super (50)
    fit: str = "centre"  # how an image becomes a square: its centre, or squashed
    resize: str = "nearest"
    clusters: int = 27  # of a folder of one's own, which has no classes
    skip_bad: bool = False  # leave out images that cannot be read, and say which
    batch_size: int = 16
    num_concepts: int = 2048
    temperature: float = 0.1
    objective: str = "max"  # max over concepts (release), quadratic (the paper's Eq. 3), tanh (its Algorithm 1)
    reduced_dim: int = 90
    projection_dim: int = 2048  # 0: contrast the head's output itself, as the paper's K x 100 x 90 bank says
    bank_capacity: int = 100
    bank_share: float = 0.5  # of a concept's new vectors, how many the bank takes in (rounded down)
    positive_threshold: float = 0.3
    negative_threshold: float = 0.1
    contrastive_temperature: float = 0.07
    ema_decay: float = 0.99
    dropout: float = 0.1
    teacher_dropout: bool = True
    cell: int = 4
    clusterbook_init: str = "uniform"
    clusterbook_rate: float = 4e-3
    clusterbook_epochs: int = 1
    head_epochs: int = 2
    probe_epochs: int = 5
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    clip: float = 2.0  # norm of the head's gradient; 0: no clipping
    probe_init: str = "uniform"
    probe_objective: str = "modularity"
    probe_rate: float = 4e-3
    linear_rate: float = 4e-3
    probe_halving: int = 2  # epochs of step 3 after which its rates halve; 0: never
    label_flow: str = "clean"  # as_released: step 3 trains the evaluated head with the labels (see the audit)
    ddp: str = "averaged"  # as_released: one of four processes that never average: a quarter of batch and epoch
    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is float and isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{field.name}: {value!r} is not finite")
            right = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if not right or (kind is not bool and isinstance(value, bool)):
                raise UserError(f"{field.name}: {value!r} is no {kind.__name__}")
            if field.name in CHOICES and value not in CHOICES[field.name]:
                raise UserError(f"{field.name}: {value!r} is none of {', '.join(CHOICES[field.name])}")
            if kind in (int, float) and field.name not in ("positive_threshold", "negative_threshold") and value < 0:
                raise UserError(f"{field.name}: {value!r} is negative")
        for name in ("size", "batch_size", "num_concepts", "reduced_dim", "cell", "temperature", "clusters"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}: must be above 0")

    @property
    def scored_size(self) -> int:
        """Pixels a side in evaluation."""
        return self.eval_size or self.size
