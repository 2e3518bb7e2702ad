"""How far the processor and the number of threads move a score: the same fits on each.

Every run is one of the process that does it, from an empty cache. Another set of instructions or number of threads is
asked for from outside: `ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 cause-lite study machines scenes --seeds 1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd
import torch

from cause_lite.config import FitConfig
from cause_lite.lab.recipes import HEADS, recipe
from cause_lite.lab.studies import Run, read_study, whole_fit
from cause_lite.runtime.files import empty_cache

STUDY = "machines"


def machine_runs(data: str, seeds: int, heads: tuple[str, ...] = HEADS) -> Iterator[Run]:
    """Yield the recipe's fits on this process's instructions and threads, which name the runs."""
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    name = f"{capability.lower()}-{threads}-threads"
    for seed in range(seeds):
        for head in heads:
            config = recipe(data, head, seed)
            yield Run(name, f"{capability}, {threads} threads", config, partial(_from_nothing, config), by_device=True)


def _from_nothing(config: FitConfig) -> dict:
    with empty_cache():
        return whole_fit(config)


def moves(data: str = "scenes") -> pd.DataFrame:
    """Return how far a score moves across instructions and threads, a row a method.

    Columns `miou_std` and `pacc_std` are sample standard deviations over the runs of one seed, their mean over seeds.
    `miou_range` and `pacc_range` are the largest score of one seed less its smallest, in points, at the seed where
    that is most. `runs` counts the kinds of run and `seeds` the seeds.
    """
    frame = pd.DataFrame(read_study(STUDY, data).values())
    rows = {}
    for method, part in frame.groupby("method"):
        by_seed = part.groupby("seed")[["miou", "pacc"]]
        deviations, ranges = by_seed.std().mean(), (by_seed.max() - by_seed.min()).max()
        row = {f"{score}_std": deviations[score] for score in deviations.index}
        row |= {f"{score}_range": ranges[score] for score in ranges.index}
        rows[method] = row | {"runs": part["name"].nunique(), "seeds": part["seed"].nunique()}
    return pd.DataFrame(rows).T
