"""Half precision where it is asked for."""

from __future__ import annotations

import torch

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """A context in which matrix products run in bf16 or fp16; in fp32 it changes nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=HALVES.get(precision, torch.bfloat16), enabled=precision in HALVES)
