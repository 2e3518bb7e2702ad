"""Studies of what the seed and the machine do to numbers, and what the run of mutants needs to start."""

from __future__ import annotations

import importlib.util

import mutants
import yaml


def test_what_the_run_of_mutants_imports_is_installed():
    """No check runs it, so nothing else would notice."""
    assert [name for name in mutants.HEAVY if importlib.util.find_spec(name) is None] == []


def test_every_equivalent_mutant_has_a_reason():
    listed = yaml.safe_load(mutants.EQUIVALENT.read_text(encoding="utf-8"))
    assert listed and all(set(one) == {"module", "before", "after", "reason"} for one in listed)
    assert {one["module"] for one in listed} <= mutants.TESTS.keys()
