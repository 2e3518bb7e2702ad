"""The forms that a GPU takes, on a CPU: the whole bank as it lies, and the kernels by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cause_lite.fast import contrast, tiled_modularity, whole_bank
from cause_lite.frontdoor import ConceptBank
from cause_lite.frontdoor import concept_contrastive_loss as plain_loss

seeds = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def banked(seed: int, updates: int, width: int) -> ConceptBank:
    bank = ConceptBank(5, width, 3)
    bank.vectors = bank.vectors.double()
    for number in range(updates):
        vectors = drawn(seed + number, 9, width)
        bank.update(vectors, torch.arange(9) // 4, torch.Generator().manual_seed(seed), 0.6)
    return bank


@given(seeds, st.integers(0, 3), st.sampled_from([3, 40]), st.integers(1, 20), st.booleans(), st.booleans())
def test_a_bank_as_it_lies_gives_the_plain_loss(seed, updates, width, chunk, pair, kept):
    """With an empty bank, some places in use, and full concepts; value and gradients; odds kept or computed again."""
    features, codebook, teacher = drawn(seed, 2, 6, 5), drawn(seed + 1, 5, 5), drawn(seed + 2, 2, 6, width)
    bank, found = banked(seed, updates, width), []
    for form in ("plain", "whole"):
        inputs, linear = drawn(seed + 4, 2, 6, 2).requires_grad_(), torch.nn.Linear(2, width, dtype=torch.float64)
        linear.load_state_dict({"weight": drawn(seed + 5, width, 2), "bias": drawn(seed + 6, width)})
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(contrast, "works_ahead", lambda device: True)
            patched.setattr(contrast, "bank_keys", lambda bank: pytest.fail("rows of a bank are read"))
            patched.setattr(whole_bank, "KEPT", 10**9 if kept else 0)
            if form == "plain":
                loss = plain_loss(features, codebook, linear(inputs), teacher, bank)
            else:
                projected = (inputs, linear) if pair else linear(inputs)
                loss = contrast.concept_contrastive_loss(features, codebook, projected, teacher, bank, chunk=chunk)
        loss.backward()
        found.append((loss, inputs.grad, linear.weight.grad, linear.bias.grad))
    for ours, plain in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, plain)


INTERPRETED = """
import torch
from cause_lite.fast import kernels
from cause_lite.fast.modularity import StrongestSharedConcept
from cause_lite.fast.tiled_modularity import TiledSharedConcept

for images, patches, concepts in ((1, 5, 3), (2, 33, 70), (1, 40, 130)):
    memberships = [torch.rand(images, patches, concepts, generator=torch.Generator().manual_seed(9)) for _ in "ab"]
    weight = torch.rand(images, patches, patches, generator=torch.Generator().manual_seed(1))
    found = []
    for form, membership in zip((TiledSharedConcept, StrongestSharedConcept), memberships):
        membership[:, 0] = 0  # a patch that shares no concept
        best = form.apply(membership.requires_grad_())
        (best * weight).sum().backward()
        found.append((best, membership.grad * (membership > 0)))  # at 0 any concept may win; `assign` drops it
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
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
    assert not tiled_modularity.compiles(torch.device("cpu"))
