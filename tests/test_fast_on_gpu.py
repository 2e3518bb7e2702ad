"""The forms that a GPU takes, on a CPU: the whole bank as it lies, and the kernels by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.fast import contrast, modularity
from cause_lite.frontdoor import ConceptBank
from cause_lite.frontdoor import concept_contrastive_loss as plain_loss

seeds = st.integers(0, 2**31 - 1)


CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


def drawn(dtype: torch.dtype, seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def banked(dtype: torch.dtype, seed: int, updates: int, width: int) -> ConceptBank:
    bank = ConceptBank(5, width, 3)
    bank.vectors = bank.vectors.to(dtype)
    for number in range(updates):
        vectors = drawn(dtype, seed + number, 9, width)
        bank.update(vectors, torch.arange(9) // 4, torch.Generator().manual_seed(seed), 0.6)
    return bank


@given(
    seeds,
    st.integers(0, 3),
    st.sampled_from([3, 40]),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    st.sampled_from(list(CLOSE)),
)
def test_a_bank_as_it_lies_gives_the_plain_loss(seed, updates, width, chunk, pair, kept, dtype):
    """With an empty bank, some places in use, and full concepts; value and gradients; odds kept or computed again."""
    drawn_as = partial(drawn, dtype)
    features, codebook, teacher = drawn_as(seed, 2, 6, 5), drawn_as(seed + 1, 5, 5), drawn_as(seed + 2, 2, 6, width)
    bank, found = banked(dtype, seed, updates, width), []
    for form in ("plain", "whole"):
        inputs, linear = drawn_as(seed + 4, 2, 6, 2).requires_grad_(), torch.nn.Linear(2, width, dtype=dtype)
        linear.load_state_dict({"weight": drawn_as(seed + 5, width, 2), "bias": drawn_as(seed + 6, width)})
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(contrast, "works_ahead", lambda device: True)
            patched.setattr(contrast, "bank_keys", lambda bank: pytest.fail("rows of a bank are read"))
            patched.setattr(contrast, "KEPT", 10**9 if kept else 0)
            if form == "plain":
                loss = plain_loss(features, codebook, linear(inputs), teacher, bank)
            else:
                projected = (inputs, linear) if pair else linear(inputs)
                loss = contrast.concept_contrastive_loss(features, codebook, projected, teacher, bank, chunk=chunk)
        loss.backward()
        found.append((loss, inputs.grad, linear.weight.grad, linear.bias.grad))
    for ours, plain in zip(*reversed(found), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, plain, **CLOSE[dtype])


INTERPRETED = """
import torch
from itertools import product
from cause_lite.fast.modularity import StrongestSharedConcept

for size, dtype in product(((1, 5, 3), (2, 33, 70), (1, 40, 130)), (torch.float32, torch.float64)):
    images, patches, concepts = size
    given = torch.rand(size, generator=torch.Generator().manual_seed(9), dtype=dtype)
    given[:, 0] = 0  # a patch that shares no concept
    weight = torch.rand(images, patches, patches, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = []
    for by_kernels in (True, False):
        membership = given.clone().requires_grad_()
        best = StrongestSharedConcept.apply(membership, by_kernels)
        (best * weight).sum().backward()
        found.append((best, membership.grad * (membership > 0)))  # at 0 any concept may win; `assign` drops it
    assert torch.equal(found[0][0], found[1][0])
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(found[0][1], found[1][1], **close)
"""


def test_the_kernels_find_what_the_search_finds():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_cuda_no_kernel_is_asked_for():
    assert not modularity.kernels_work(torch.device("cpu"))
