"""Thresholds on concepts: cosines as they are, or quantiles of the cosines of all pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cause_lite.config import FitConfig
from cause_lite.frontdoor import threshold_cosines
from cause_lite.runtime.files import UserError

SHARES = st.floats(0, 1, allow_nan=False)


@given(seed=st.integers(0, 1000), shares=st.tuples(SHARES, SHARES))
def test_a_quantile_has_its_share_of_the_pairs_below(seed, shares):
    negative, positive = sorted(shares)
    codebook = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    high, low = threshold_cosines(codebook, positive, negative, "quantile")
    cosines = [float(F.cosine_similarity(codebook[i], codebook[j], dim=0)) for i in range(12) for j in range(i)]
    for share, cosine in ((positive, high), (negative, low)):
        below = sum(value < cosine - 1e-5 for value in cosines)
        above = sum(value > cosine + 1e-5 for value in cosines)
        assert below <= share * len(cosines) + 1 and above <= (1 - share) * len(cosines) + 1


@given(scale=st.floats(0.1, 10), low=st.floats(-1, 1), high=st.floats(-1, 1))
def test_cosines_are_taken_as_they_are_and_scale_does_not_matter(scale, low, high):
    codebook = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert threshold_cosines(codebook, high, low) == (high, low)
    plain = threshold_cosines(codebook, 0.9, 0.5, "quantile")
    assert threshold_cosines(codebook * scale, 0.9, 0.5, "quantile") == pytest.approx(plain, abs=1e-5)


def test_a_quantile_is_not_below_zero():
    with pytest.raises(UserError, match=r"negative_threshold -0\.2 must be in 0\.\.1"):
        FitConfig().replace({"head.threshold_kind": "quantile", "head.negative_threshold": -0.2})
    assert FitConfig().head.threshold_kind == "cosine"
