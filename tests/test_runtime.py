"""What every long job stands on: folders that cannot be written, and what a record says of its machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cause_lite.runtime import files, progress, provenance
from cause_lite.runtime.files import UserError, cache_dir, data_dir


@pytest.fixture
def unwritable(tmp_path) -> Path:
    """A home in which nobody, root included, can make a folder: a file."""
    (tmp_path / "home").write_text("in the way")
    return tmp_path / "home"


def run(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run the command line without a cache of its own, in another process, with other variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CAUSE_CACHE", "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "cause_lite", *map(str, words)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True)


def test_a_home_that_cannot_be_written_is_done_without(tmp_path, unwritable):
    """A shipped model segments; the folder is named once, on the stream of errors, and nothing is left behind."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "temporary").mkdir()
    done = run(
        *("segment", tmp_path / "a.png", "--model", "scenes", "--out", tmp_path / "out"),
        HOME=str(unwritable),
        TMPDIR=str(tmp_path / "temporary"),
    )
    assert done.returncode == 0 and (tmp_path / "out" / "a.labels.png").exists(), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("could not be written") <= 1
    assert not list((tmp_path / "temporary").glob("cause-lite-*"))


def test_the_cache_of_a_process_is_a_temporary_folder_where_it_cannot_be_another(unwritable, monkeypatch, capsys):
    monkeypatch.delenv("CAUSE_CACHE")
    monkeypatch.delenv("CAUSE_DATA", raising=False)
    monkeypatch.setattr(files.platformdirs, "user_cache_dir", lambda name: str(unwritable / name))
    folder = cache_dir()
    (folder / "kept").touch()
    assert cache_dir() == folder and (cache_dir() / "kept").exists()
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(unwritable) in printed and "CAUSE_CACHE" in printed
    assert data_dir() == unwritable / "cause-lite" / "data"  # what is downloaded must not go with the process


def test_a_named_cache_that_cannot_be_written_is_named(unwritable, monkeypatch):
    monkeypatch.setenv("CAUSE_CACHE", str(unwritable / "cache"))
    with pytest.raises(UserError, match=r"^CAUSE_CACHE=.*home/cache: could not be written \(.+\); name another folder"):
        cache_dir()


def test_a_cache_that_exists_but_is_read_only_counts_as_unwritable(tmp_path, monkeypatch):
    """As on a file system that is mounted so, where even root is told that it may not write."""
    monkeypatch.setenv("CAUSE_CACHE", str(tmp_path))
    monkeypatch.setattr(files.os, "access", lambda folder, mode: mode != os.W_OK)
    with pytest.raises(UserError, match="could not be written"):
        cache_dir()


def test_a_record_says_what_its_numbers_may_depend_on():
    """Flat text, so that two records can be compared by key; the same in another process, whatever it imported."""
    here = provenance.environment()
    assert all(isinstance(name, str) and isinstance(value, str) and value for name, value in here.items())
    assert {"torch", "python", "processor", "instructions", "threads", "blas"} <= here.keys()
    code = "import json; from cause_lite.runtime import provenance; print(json.dumps(provenance.environment()))"

    def elsewhere(**variables: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    there = elsewhere(OMP_NUM_THREADS="1", ATEN_CPU_CAPABILITY="default", MKL_ENABLE_INSTRUCTIONS="SSE4_2")
    assert there | {"threads": here["threads"], "instructions": here["instructions"]} == here | {
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"
    }
    assert there["threads"] == "1" and there["instructions"] == "DEFAULT"


def test_a_bar_may_be_named_by_any_folder(monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(progress, "_bar_console", lambda: (shown, True))
    assert list(progress.track([1, 2], "Features of photos[/x]")) == [1, 2]
    assert "photos[/x]" in shown.file.getvalue()
