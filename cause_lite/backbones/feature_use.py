"""How a fit uses features: the type in which it keeps what the head makes of them."""

from __future__ import annotations

import torch

from cause_lite.config import FitConfig


def output_type(config: FitConfig) -> torch.dtype:
    """Return the type in which step 3 keeps the head's outputs: half precision where the head runs in it."""
    return torch.float32 if config.optimisation.precision == "fp32" else torch.float16
