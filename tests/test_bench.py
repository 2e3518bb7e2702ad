"""The bench's own tools, and that its shipped records cover every line."""

from __future__ import annotations

import torch

from cause_lite.lab import bench
from cause_lite.runtime.device import choose_device
from cause_lite.runtime.files import read_json


def test_matrix_products_are_noted_and_replayed():
    weight = torch.randn(5, 3, requires_grad=True)
    with bench.MatrixProducts() as products:
        (torch.randn(4, 5) @ weight).relu().sum().backward()
    assert [func.name().split(".")[0] for func, _, _ in products.calls] == ["aten::mm"] * 2
    with bench.MatrixProducts() as again:
        products.replay()()
    assert [form for _, form, _ in again.calls] == [form for _, form, _ in products.calls]


def test_peak_memory_sees_what_was_freed_again():
    assert bench.watched(lambda: torch.ones(50_000_000, device=choose_device("auto")))[1] > 150


def test_a_ratio_is_the_baselines_time_over_ours():
    measured = bench.compare(lambda: torch.ones(10), lambda: torch.randn(3_000_000), rounds=3)
    assert measured["ratio_low"] <= measured["ratio"] <= measured["ratio_high"]
    assert measured["ratio_low"] > 1


def test_every_line_has_a_record_whose_sides_agree():
    recorded, lines = read_json(bench.records_path())["lines"], bench.load_lines()
    assert recorded.keys() == lines.keys() - {"published rows"}  # which take an accelerator
    for line in recorded.values():
        for row in line["rows"]:
            assert row.get("difference", 0) < 1e-4
