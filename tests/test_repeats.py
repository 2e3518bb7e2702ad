"""Studies of what the seed and the machine do to numbers, and what the run of mutants needs to start."""

from __future__ import annotations

import importlib.util

import mutants
import pytest
import yaml

from cause_lite.lab import concept_seeds, machines
from cause_lite.runtime.files import UserError, project_dir, read_json


def test_a_run_on_another_machine_has_another_key(monkeypatch):
    keys = set()
    for capability, threads in (("AVX2", 1), ("AVX512", 1), ("AVX512", 4)):
        monkeypatch.setattr(machines.torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        monkeypatch.setattr(machines.torch, "get_num_threads", lambda count=threads: count)
        keys |= {run.key for run in machines.machine_runs("scenes", seeds=2)}
    assert len(keys) == 3 * 2 * 2


def test_moves_part_the_machines_from_the_seeds(monkeypatch):
    scores = {("a", 0): 20.0, ("b", 0): 21.0, ("a", 1): 30.0, ("b", 1): 33.0}
    records = {
        f"{name}/{seed}": {"method": "CAUSE-MLP", "name": name, "seed": seed, "miou": score, "pacc": 2 * score}
        for (name, seed), score in scores.items()
    }
    monkeypatch.setattr(machines, "read_study", lambda study, data: records)
    row = machines.moves().loc["CAUSE-MLP"]
    assert row["miou_range"] == 3 and row["pacc_range"] == 6 and row["runs"] == row["seeds"] == 2
    assert row["miou_std"] == pytest.approx((0.5**0.5 + 4.5**0.5) / 2)


def test_the_concepts_seeds_run_once_whatever_the_heads():
    assert [run.config.seed for run in concept_seeds.concept_runs("scenes", 3)] == [0, 1, 2]
    with pytest.raises(UserError, match="must be scenes"):
        list(concept_seeds.concept_runs("camvid", 1))


def test_seed_0_of_the_study_is_what_the_chapters_say():
    """Tolerances come from the study, so it must measure the same things."""
    expected = read_json(project_dir() / "data" / "expected.json")
    records = read_json(project_dir() / "data" / "records" / "concepts-scenes.json")["records"]
    found = next(record["values"] for record in records.values() if record["seed"] == 0)
    for name, value in found.items():
        key = next(key for key in expected if key.endswith(f".{name}"))
        assert value == pytest.approx(expected[key]["value"], abs=expected[key]["tolerance"]), key


def test_what_the_run_of_mutants_imports_is_installed():
    """No check runs it, so nothing else would notice."""
    assert [name for name in mutants.HEAVY if importlib.util.find_spec(name) is None] == []


def test_every_equivalent_mutant_has_a_reason():
    listed = yaml.safe_load(mutants.EQUIVALENT.read_text(encoding="utf-8"))
    assert listed and all(set(one) == {"module", "before", "after", "reason"} for one in listed)
    assert {one["module"] for one in listed} <= mutants.TESTS.keys()
