"""What ships is whole: weights match their cards, the README shows the records, the book is well formed."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

import cause_lite
from cause_lite.backbones.pretrain import prose
from cause_lite.datasets import scenes
from cause_lite.lab.bench import measure
from cause_lite.lab.results import row
from cause_lite.lab.study import read_records, unpacked
from cause_lite.pages import readme
from cause_lite.runtime.files import project_dir, read_json

DATA = project_dir() / "data"


def test_the_backbone_matches_its_card():
    folder = DATA / "backbones" / "scenes"
    weights = (folder / "vit.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == read_json(folder / "vit.json")["sha256"]
    assert len(weights) <= 12_000_000


@pytest.mark.parametrize("name, card", [("scenes", "vit"), ("camvid", "vit"), ("photos", "network")])
def test_a_backbones_prose_says_what_its_card_says(name, card):
    folder = DATA / "backbones" / name
    assert (folder / "README.md").read_text(encoding="utf-8") == prose(read_json(folder / f"{card}.json"), card)


def test_no_weights_learned_from_camvid_ship():
    assert (DATA / "backbones" / "camvid" / "vit.json").exists()
    assert not list((DATA / "backbones" / "camvid").glob("*.safetensors"))


def test_the_bundled_segmenter_segments():
    labels = cause_lite.load("scenes").segment(scenes.render(0, "val", 0).image)
    assert labels.shape == (128, 128) and labels.dtype == np.uint8
    assert 2 <= len(np.unique(labels)) <= len(scenes.FINE_CLASSES)


def test_a_photograph_takes_little_memory():
    """Six megapixels: as one array, their features alone would be two gigabytes."""
    segmenter, image = cause_lite.load("scenes"), np.zeros((2000, 3000, 3), np.uint8)
    assert measure(lambda: segmenter.segment(image)).megabytes < 1000


def test_the_readme_shows_the_records():
    text = (project_dir() / "README.md").read_text(encoding="utf-8")
    assert readme.with_results(text) == text, "run `python -m cause_lite.pages.readme`"


@pytest.mark.parametrize("data", ["scenes", "msrc", "camvid"])
def test_records_say_how_they_were_made(data):
    records = read_records("tables", data).values()
    assert len({record["seed"] for record in records}) >= 3
    for record in records:
        assert record.keys() >= {"title", "seconds", "device", "commit", "environment", "date"}
        assert 0 <= row(record)["miou"] <= 100 and unpacked(record).sum() > 0


def chapters() -> list[str]:
    return sorted((project_dir() / "book").glob("*.md"))


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_chapters_are_executed_and_their_cells_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert "format_name: myst" in text or "{code-cell}" not in text
    for cell in re.findall(r"```\{code-cell\}.*?\n(.*?)```", text, flags=re.S):
        assert len([line for line in cell.strip().splitlines() if not line.startswith(":")]) <= 25, cell
    for cell in re.findall(r"```\{code-cell\}[^`]*?image_grid[^`]*?```", text, flags=re.S):
        assert ":    alt:" in cell or "widgets.slider" in cell, f"a figure without alternative text:\n{cell}"


def exercises() -> list[str]:
    return [path for path in chapters() if "## Exercises" in path.read_text(encoding="utf-8")]


def test_each_chapter_has_goal_summary_and_exercises_with_solutions():
    assert len(exercises()) >= 13
    for path in exercises():
        text = path.read_text(encoding="utf-8")
        for part in ("**Goal.**", "**Prerequisites:**", "**Running time:**"):
            assert part in text, f"{path.name}: lacks {part}"
        assert "## Summary" in text or "## In short" in text, f"{path.name}: lacks what was learned"
        asked = text.split("## Exercises")[1]
        if "```{dropdown} Answer" in asked:
            continue  # tests/test_exercises.py
        assert asked.count("{admonition} Solution") == len(re.findall(r"^\d+\. ", asked, flags=re.M)), path.name


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_every_figure_has_a_caption_and_no_visible_cell_records_a_number(path):
    for cell in re.findall(r"```\{code-cell\}.*?\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S):
        assert "alt:" not in cell or re.search(r'caption: "[^"]{20,}"', cell), cell
        assert not re.search(r"\brecord\(", cell) or re.search("remove-(input|cell)", cell), cell


def test_numbers_in_tables_are_not_typed():
    for path in chapters():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("|"):
                assert not re.search(r"\|\s*\d+(\.\d+)?\s*%?\s*\|", line), f"{path.name}: {line}"
