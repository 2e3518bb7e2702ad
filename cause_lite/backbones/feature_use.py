"""How a fit uses features: how often it reads them, and in which type it keeps what the head makes of them."""

from __future__ import annotations

import torch

from cause_lite.config import FitConfig
from cause_lite.runtime.precision import HALF_TYPES, working_type


def readings_of(config: FitConfig) -> int:
    """Return how often a fit reads each image's features: step 3 reads them once, but for the released label flow."""
    third = 1 if config.probe.label_flow == "clean" else config.probe.epochs
    return config.clusterbook.epochs + config.head.epochs + third


def output_type(config: FitConfig) -> torch.dtype:
    """Return the type in which step 3 keeps the head's outputs: half precision where the head runs in it."""
    precision = config.optimisation.precision
    return torch.float16 if precision in HALF_TYPES else working_type(precision)
