"""Run matrix products in half precision where it is asked for."""

from __future__ import annotations

import torch

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """Return a context in which matrix products run in `bf16` or `fp16`; with `fp32` it changes nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=HALF_TYPES.get(precision, torch.bfloat16), enabled=precision in HALF_TYPES)
