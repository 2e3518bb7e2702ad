"""Patch vectors within a budget: what is read does not depend on what was kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.backbones.feature_pass import prefetched
from cause_lite.backbones.feature_store import PatchStore
from cause_lite.runtime.files import UserError

VECTORS = torch.arange(7 * 4 * 3, dtype=torch.float32).view(7, 4, 3)
ONE_IMAGE = 4 * 3 * 4 / 1e9  # gigabytes


def stored(folder: Path, compute: Callable = VECTORS.__getitem__) -> PatchStore:
    return PatchStore(folder / "v", VECTORS.shape, VECTORS.dtype, compute, "Vectors")


@pytest.mark.parametrize("budget", [0, 3, 7, 100])
@given(which=st.lists(st.integers(0, 6), min_size=1), patch=st.integers(0, 3))
def test_any_budget_reads_the_same(tmp_path_factory, budget, which, patch):
    asked = []

    def compute(numbers):
        asked.extend(numbers.tolist())
        return VECTORS[numbers]

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAUSE_FEATURE_BUDGET", str(budget * ONE_IMAGE * 1.001))
        store = stored(tmp_path_factory.mktemp("store"), compute)
    assert store.stored == min(budget, 7)
    asked.clear()
    numbers = torch.tensor(which)
    assert torch.equal(store[numbers], VECTORS[numbers])
    assert torch.equal(store.at(numbers, torch.full_like(numbers, patch)), VECTORS[numbers, patch])
    assert torch.equal(store[2:6], VECTORS[2:6])
    assert all(number >= store.stored for number in asked)


def test_a_damaged_file_is_made_again(tmp_path):
    stored(tmp_path)
    file = tmp_path / "v.npy"
    file.write_bytes(file.read_bytes()[:150])
    assert torch.equal(stored(tmp_path)[:], VECTORS)
    assert np.load(file).shape == VECTORS.shape


def test_a_whole_file_is_read_without_computing(tmp_path):
    stored(tmp_path)
    asked = []
    assert torch.equal(stored(tmp_path, asked.append)[:], VECTORS) and not asked


def test_a_sample_holds_each_patch_at_most_once(tmp_path):
    store = stored(tmp_path)
    drawn = store.sample(100, torch.Generator().manual_seed(0))
    assert len(drawn) == 28 and len(drawn.unique(dim=0)) == 28


def test_a_budget_that_is_no_number_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSE_FEATURE_BUDGET", "much")
    with pytest.raises(UserError, match="CAUSE_FEATURE_BUDGET='much'"):
        stored(tmp_path)


def test_prefetching_keeps_the_order_and_raises_what_loading_raises():
    assert list(prefetched([3, 1, 2], lambda n: n * 10)) == [(3, 30), (1, 10), (2, 20)]
    with pytest.raises(ZeroDivisionError):
        list(prefetched([1, 0], lambda n: 1 // n))
