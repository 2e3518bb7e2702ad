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
from accelerate.utils import patch_environment
from joblib.externals.loky import get_reusable_executor
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core.read import is_myst_markdown_notebook
from sphinx_external_toc.parsing import parse_toc_yaml

from cause_lite.backbones import load_backbone
from cause_lite.backbones.feature_store import cached_features
from cause_lite.lab import cost, reproduce
from cause_lite.lab.comparison import REPEATED_SEED, Part, part_records, seed_records
from cause_lite.lab.recipes import HEADS, TABLES, recipe
from cause_lite.lab.runs import fitted_run, load_training
from cause_lite.pages.assets import PAGE_ASSETS, fetch_assets
from cause_lite.pages.try_page import write_segmenters
from cause_lite.runtime import provenance
from cause_lite.runtime.files import UserError, project_dir, write_whole
from cause_lite.runtime.progress import track

PAGE_SECONDS = 900  # that a page may take


def _rehearse() -> None:
    list(reproduce.rehearse(lambda text: None))


def _score(part: Part) -> list[dict]:
    """Return the records of a part, without the CRF's idle workers, which would keep this process for minutes."""
    records = part_records(part)
    get_reusable_executor().shutdown()
    return records


def run_all(seed: int = REPEATED_SEED) -> None:
    """Rehearse, and fit and score what the pages show: two processes of one thread each, faster than one of two."""
    first = recipe("scenes", HEADS[0])
    images = load_training(first).images  # before two processes would both render them
    cached_features(load_backbone(first.backbone), images, "Features")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        fits = [pool.submit(fitted_run, recipe("scenes", head, seed)) for head in HEADS]
        rehearsal = pool.submit(_rehearse)
        for fit in track(fits, "Fitting scenes, rehearsing the published rows", total=len(fits)):
            fit.result()
        seed_records("scenes", seed, run=partial(pool.map, _score))
        rehearsal.result()


def execute_pages(pages: list[Path], cache: Path) -> None:
    """Run the notebooks among pages, two at a time and a thread each, into the cache that Jupyter Book renders from.

    Raises
    ------
    UserError
        When a notebook fails, with its traceback.
    """
    notebooks = get_cache(cache)
    for page in pages:
        if is_myst_markdown_notebook(page.read_text(encoding="utf-8")):
            notebooks.add_nb_to_project(str(page), read_data={"name": "myst_nb_md", "type": "plugin"})
    with patch_environment(OMP_NUM_THREADS="1"):
        result = load_executor("local-parallel", notebooks).run_and_cache(timeout=PAGE_SECONDS)
    for page in (*result.excepted, *result.errored):
        raise UserError(f"{page} failed:\n{notebooks.get_project_record(page).traceback}")


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


def write_kernel_settings(folder: Path) -> None:
    """Write what kernels read in place of the settings of whoever builds: none but silence about local connections."""
    profile = folder / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text('c.IPKernelApp.log_level = "ERROR"\n', encoding="utf-8")


def build() -> None:
    """Build the book (`make book`). All of _build is written anew, so no number of an earlier build is left over."""
    root = project_dir()
    shutil.rmtree(root / "_build", ignore_errors=True)
    fetch_assets(PAGE_ASSETS, root / "book" / "_vendor")
    os.environ["CAUSE_CACHE"] = str(root / "_build" / "cache")
    os.environ["IPYTHONDIR"] = str(root / "_build" / "ipython")
    write_kernel_settings(root / "_build" / "ipython")
    write_table_pages(root / "book")
    write_segmenters(root / "book" / "_vendor")
    run_all()
    table = parse_toc_yaml(root / "book" / "_toc.yml")
    execute_pages([root / "book" / f"{page}.md" for page in table], root / "_build" / ".jupyter_cache")
    tools = Path(sys.executable).parent
    options = ["--config", "_config.yml", "--path-output", "."]
    _run([tools / "jupyter-book", "build", "book", *options, "-W", "--keep-going"])
    write_notebooks(root / "_build")
    _run([tools / "cause-lite", "verify"])
    print(f"The book is at {root / '_build' / 'html' / 'index.html'}")


if __name__ == "__main__":
    build()
