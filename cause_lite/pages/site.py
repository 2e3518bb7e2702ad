"""Build the book from scratch: fetch its offline assets, run every chapter, render, verify.

Begin with `build`.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import torch
from joblib.externals.loky import get_reusable_executor

from cause_lite.backbones import load_backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.config import FitConfig
from cause_lite.lab import cost, reproduce
from cause_lite.lab.comparison import REPEATED_SEED, seed_records
from cause_lite.lab.recipes import HEADS, TABLES, recipe, rows
from cause_lite.lab.runs import fitted_run, load_training
from cause_lite.pages.assets import PAGE_ASSETS, fetch_assets
from cause_lite.pages.try_page import write_segmenters
from cause_lite.runtime import provenance
from cause_lite.runtime.files import project_dir, write_whole
from cause_lite.runtime.progress import track


def _fit_on_one_thread(config: FitConfig) -> None:
    torch.set_num_threads(1)
    fitted_run(config)


def _score(seed: int) -> None:
    seed_records("scenes", seed)
    get_reusable_executor().shutdown()  # else the CRF's idle workers would keep this process for minutes


def fit_all(seed: int = REPEATED_SEED) -> None:
    """Fit and score what the pages show: two fits at a time, a thread each, which is faster than one on two threads."""
    first = recipe("scenes", HEADS[0])
    images = load_training(first).images  # before two processes would both render them
    cached_features(load_backbone(first.backbone), images, "Features")
    configs = [recipe("scenes", head, seed) for head in HEADS]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in track(pool.map(_fit_on_one_thread, configs), "Fitting scenes", total=len(configs)):
            pass
        pool.submit(_score, seed).result()


def write_table_pages(book: Path) -> None:
    """Write a page for each published table, from one template."""
    template = (book / "_templates" / "table.md").read_text(encoding="utf-8")
    for name, title in TABLES.items():
        page = template.format(name=name, title=title, basis=cost.basis())
        (book / "tables").mkdir(exist_ok=True)
        write_whole(book / "tables" / f"{name}.md", partial(Path.write_text, data=page, encoding="utf-8"))


def write_notebooks(build: Path) -> None:
    """Copy the executed notebook of every page into the site; each installs the package where it is absent."""
    repository = f"git+{provenance.repository()}"
    fetch = f"try:\n    import cause_lite\nexcept ImportError:\n    %pip install -q 'cause-lite[book] @ {repository}'"
    for path in sorted((build / "jupyter_execute").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(fetch))
        target = build / "html" / "notebooks" / path.relative_to(build / "jupyter_execute")
        write_whole(target, partial(nbformat.write, notebook))
    requirements = build / "html" / "notebooks" / "requirements.txt"  # what Binder installs
    requirements.write_text(f"cause-lite[book] @ {repository}\n", encoding="utf-8")


def _run(command: list[str | Path]) -> None:
    """Run a command in the checkout; when it fails, end with its status."""
    if status := subprocess.run(command, cwd=project_dir(), check=False).returncode:
        sys.exit(status)


def build() -> None:
    """Build the book (`make book`). All of _build is written anew, so no number of an earlier build is left over."""
    root = project_dir()
    shutil.rmtree(root / "_build", ignore_errors=True)
    fetch_assets(PAGE_ASSETS, root / "book" / "_vendor")
    os.environ["CAUSE_CACHE"] = str(root / "_build" / "cache")
    write_table_pages(root / "book")
    write_segmenters(root / "book" / "_vendor")
    for _ in track(reproduce.rehearse(lambda text: None), "Rehearsing", total=len(rows()) * len(reproduce.KINDS)):
        pass
    fit_all()
    tools = Path(sys.executable).parent
    options = ["--config", "_config.yml", "--path-output", "."]
    _run([tools / "jupyter-book", "build", "book", *options, "-W", "--keep-going"])
    write_notebooks(root / "_build")
    _run([tools / "cause-lite", "verify"])
    print(f"The book is at {root / '_build' / 'html' / 'index.html'}")


if __name__ == "__main__":
    build()
