"""How a fit uses features: the type in which it keeps what the head makes of them."""

from __future__ import annotations

import torch

from cause_lite.config import FitConfig
from cause_lite.runtime.precision import HALF_TYPES, working_type


def output_type(config: FitConfig) -> torch.dtype:
    """Return the type in which step 3 keeps the head's outputs: half precision where the head runs in it."""
    precision = config.optimisation.precision
    return torch.float16 if precision in HALF_TYPES else working_type(precision)
