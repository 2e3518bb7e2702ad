"""The photographs that ship: free ones, drawn by a seed."""

from __future__ import annotations

import re

from cause_lite.datasets.photos import photographs
from cause_lite.runtime.files import project_dir


def test_every_photograph_that_ships_is_credited():
    credits = (project_dir() / "data" / "photographs" / "CREDITS.md").read_text(encoding="utf-8")
    credited = re.findall(r"^\| (\w+)\.jpg \| \1/image_\d+\.jpg \|", credits, re.MULTILINE)
    assert [path.stem for path in photographs()] == sorted(credited) and len(credited) == 27
    assert "creativecommons.org/licenses/by/4.0" in credits
