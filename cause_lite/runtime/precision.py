"""Compute in the precision that is asked for: double, single, or half where matrix products may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def working_type(precision: str) -> torch.dtype:
    """Return the type of parameters and losses: double with `fp64`, otherwise single."""
    return torch.float64 if precision == "fp64" else torch.float32


def output_type(precision: str) -> torch.dtype:
    """Return the type in which step 3 keeps the head's outputs: half precision where the head runs in it."""
    return torch.float16 if precision in HALF_TYPES else working_type(precision)


@contextmanager
def drawn_in_double() -> Iterator[None]:
    """Let new modules be of double precision within the block: rounded afterwards, their draws are alike anywhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """Return a context in which matrix products run in `bf16` or `fp16`; with `fp32` or `fp64` it changes nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=HALF_TYPES.get(precision, torch.bfloat16), enabled=precision in HALF_TYPES)
