"""The study of the backbone's seed: what it runs, and how it parts two sources of chance."""

from __future__ import annotations

import numpy as np
import pytest

from cause_lite.lab.backbone_seeds import BACKBONES, backbone_runs, deviations
from cause_lite.runtime.files import UserError


def drawn(backbones: int, fits: int, backbone: float, fit: float, seed: int) -> dict[str, dict]:
    """Return records whose scores have the two standard deviations."""
    rng, records = np.random.default_rng(seed), {}
    for number, offset in enumerate(rng.normal(30, backbone, backbones)):
        for run, score in enumerate(rng.normal(offset, fit, fits)):
            records[f"{number}/{run}"] = {"method": "CAUSE-MLP", "name": f"backbone-{number}", "miou": score}
    return records


@pytest.mark.parametrize(("backbone", "fit"), [(2.0, 1.0), (0.5, 2.0), (3.0, 0.2)])
def test_both_deviations_are_found_again(backbone, fit):
    row = deviations(drawn(3000, 5, backbone, fit, seed=0)).iloc[0]
    assert row["fit"] == pytest.approx(fit, rel=0.05)
    assert row["backbone"] == pytest.approx(backbone, rel=0.1)


def test_backbones_that_differ_less_than_chance_allows_add_nothing():
    records = {
        f"{number}/{run}": {"method": "CAUSE-MLP", "name": str(number), "miou": score}
        for number in range(3)
        for run, score in enumerate((29.0, 31.0))
    }
    row = deviations(records).iloc[0]
    assert row["backbone"] == 0
    assert row["fit"] == pytest.approx(2**0.5)


def test_each_backbone_has_k_means_once_a_seed_and_each_head():
    runs = list(backbone_runs("scenes", seeds=5))
    assert len({run.key for run in runs}) == len(runs) == BACKBONES * 5 * 3
    assert len({run.config.backbone for run in runs}) == BACKBONES


def test_k_means_runs_once_whatever_the_heads():
    apart = [run.key for head in ("tr", "mlp") for run in backbone_runs("scenes", 2, (head,))]
    for heads in (("tr", "mlp"), ("mlp", "tr")):
        assert sorted(run.key for run in backbone_runs("scenes", 2, heads)) == sorted(apart)
    assert sum("/kmeans-" in key for key in apart) == BACKBONES * 2


def test_another_data_set_is_refused():
    with pytest.raises(UserError, match="must be scenes"):
        next(backbone_runs("camvid", seeds=1))
