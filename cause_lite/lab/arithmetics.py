"""Arithmetics of other processors: environment variables that make torch, MKL and others take fewer instructions.

Begin with `arithmetics`; `in_process` runs a program under one of them.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

import torch

from cause_lite.runtime.files import UserError, cache_dir
from cause_lite.runtime.provenance import config_hash

INSTRUCTIONS = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}  # torch's names for a processor's instructions, and their order
MKL = {"SSE4_2": 0, "AVX2": 1, "AVX512": 2}


def arithmetics() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the variables of every arithmetic that this processor can emulate.

    Those are torch's instructions, MKL's, and 1 to 3 threads; generic instructions, which are slow, go with MKL's own.
    """
    most = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), 0)
    for (ours, order), (mkl, needs), threads in itertools.product(INSTRUCTIONS.items(), MKL.items(), (1, 2, 3)):
        if order <= most and needs <= most and (order > 0 or (needs == 0 and threads < 3)):
            variables = {"ATEN_CPU_CAPABILITY": ours.lower(), "MKL_ENABLE_INSTRUCTIONS": mkl}
            yield f"torch {ours}, MKL {mkl}, threads {threads}", variables | {"OMP_NUM_THREADS": str(threads)}


def in_process(arguments: list[str], variables: Mapping[str, str]) -> str:
    """Return what a Python process prints under some variables, with a cache that nothing else uses.

    Raises
    ------
    UserError
        When it fails.
    """
    cache = cache_dir() / "arithmetics" / config_hash(dict(variables))
    environment = os.environ | dict(variables) | {"CAUSE_CACHE": str(cache)}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(arguments)}: failed under {dict(variables)} ({done.stderr.strip()[-500:]})")
    return done.stdout
