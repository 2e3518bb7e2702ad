"""Baselines find what is there, predict as their library does, and depend on their seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cause_lite.lab.agreement import agreement

CONFUSIONS = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 9)).filter(
    lambda counts: counts.sum() > 1
)


@given(CONFUSIONS)
def test_agreement_of_a_confusion_is_that_of_its_pixels(confusion):
    cluster, label = (np.repeat(index.ravel(), confusion.ravel()) for index in np.indices(confusion.shape))
    found = agreement(confusion)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(label, cluster), abs=1e-9)
    assert found["ari"] == pytest.approx(adjusted_rand_score(label, cluster), abs=1e-9)
    commonest = sum(np.bincount(label[cluster == one]).max() for one in np.unique(cluster))
    assert found["many_to_one"] == pytest.approx(100 * commonest / len(label))


@given(CONFUSIONS)
def test_splitting_a_cluster_never_lowers_many_to_one_accuracy(confusion):
    half = confusion // 2
    split = np.concatenate([half, confusion - half])
    assert agreement(split)["many_to_one"] >= agreement(confusion)["many_to_one"] - 1e-9
