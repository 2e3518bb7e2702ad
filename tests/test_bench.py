"""The bench's own tools, and that its shipped records cover every line."""

from __future__ import annotations

import multiprocessing

import psutil
import torch

from cause_lite.lab import bench, bench_lines
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
    assert bench.measure(lambda: torch.ones(50_000_000, device=choose_device("auto"))).megabytes > 150


def test_a_ratio_is_the_baselines_time_over_ours():
    measured = bench.compare(lambda: torch.ones(10), lambda: torch.randn(3_000_000), rounds=3)
    assert measured["ratio_low"] <= measured["ratio"] <= measured["ratio_high"]
    assert measured["ratio_low"] > 1


def test_a_case_is_measured_beside_another_process_too():
    """The second row of a case has its own name, and the other process is gone after it."""
    children = set(psutil.Process().children(recursive=True))
    rows = list(bench.compare_loads("case", lambda: torch.ones(10), lambda: torch.randn(1_000_000), rounds=1))
    wanted = ["case", "case" + bench.BUSY] if choose_device("auto").type == "cpu" else ["case"]
    assert [row["case"] for row in rows] == wanted
    assert all(row["ratio"] > 1 for row in rows)
    left = set(psutil.Process().children(recursive=True)) - children
    assert not [process for process in left if "resource_tracker" not in " ".join(process.cmdline())]


def test_the_cores_are_busy_within_the_block():
    with bench.busy_cores():
        other = [p for p in multiprocessing.active_children() if p.is_alive()]
        assert len(other) == 1
        busy, before = psutil.Process(other[0].pid), psutil.Process(other[0].pid).cpu_times().user
        while busy.cpu_times().user <= before:
            pass
    assert not multiprocessing.active_children()


def test_every_line_has_a_record_whose_sides_agree():
    recorded, lines = read_json(bench.records_path())["lines"], bench_lines.LINES
    assert recorded.keys() == lines.keys() - {"published rows"}
    for line in recorded.values():
        for row in line["rows"]:
            assert row.get("difference", 0) < 1e-4
