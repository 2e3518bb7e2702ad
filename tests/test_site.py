"""How the book's pages are run and rendered: two at a time, a page that fails is named, and the rest is made anyway."""

from __future__ import annotations

import nbformat
import pytest
import yaml
from jupyter_cache import get_cache
from sphinx.application import Sphinx

from cause_lite.pages import site
from cause_lite.runtime.files import UserError, project_dir

PAGE = """---
jupytext:
  text_representation:
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---

# A page

```{{code-cell}} ipython3
{code}
```
"""


def test_notebooks_run_into_the_cache_and_one_that_fails_is_named(tmp_path):
    codes = {"good": "print(6 * 7)", "other": "import os; print(os.environ['OMP_NUM_THREADS'])", "bad": "1 / 0"}
    pages = {name: tmp_path / f"{name}.md" for name in codes}
    for name, code in codes.items():
        pages[name].write_text(PAGE.format(code=code), encoding="utf-8")
    text = tmp_path / "text.md"
    text.write_text("# No code here\n", encoding="utf-8")
    site.execute_pages([pages["good"], pages["other"], text], tmp_path / "cache")
    notebooks = get_cache(tmp_path / "cache")
    outputs = {
        record.uri: notebooks.get_cache_bundle(record.pk).nb.cells[-1]["outputs"][0]["text"]
        for record in notebooks.list_cache_records()
    }
    assert outputs == {str(pages["good"]): "42\n", str(pages["other"]): "1\n"}
    with pytest.raises(UserError, match=r"(?s)bad\.md failed:.*ZeroDivisionError"):
        site.execute_pages([pages["bad"]], tmp_path / "cache")


def test_a_step_that_fails_leaves_the_rest_of_the_site_whole(tmp_path, monkeypatch):
    """Rendering with warnings, and numbers that moved, do not keep the PDF and the checks from being made."""
    site_folder, commands = tmp_path / "_build" / "html", []
    site_folder.mkdir(parents=True)
    (site_folder / "index.html").touch()

    def failing(command):
        commands.append(command[0])
        return False

    monkeypatch.setattr(site, "run", failing)
    monkeypatch.setattr(site, "write_notebooks", lambda *_: commands.append("notebooks"))
    monkeypatch.setattr(site, "print_book", lambda *_: commands.append("print"))
    monkeypatch.setattr(site, "chromium", lambda: "/chromium")
    assert site.finish(tmp_path) == ["render", "check", "verify"]
    assert commands == ["jupyter-book", "notebooks", "print", "python", "cause-lite"]
    monkeypatch.setattr(site, "chromium", lambda: None)
    assert site.finish(tmp_path) == ["render", "verify"]
    (site_folder / "index.html").unlink()
    assert site.finish(tmp_path) == ["render"]


def test_notebooks_fetch_what_they_import(tmp_path):
    folder = tmp_path / "jupyter_execute"
    folder.mkdir()
    for name, code in {"plain": "1", "asking": "from exercises.checkers import check_purity"}.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), folder / f"{name}.ipynb")
    site.write_notebooks(tmp_path, project_dir() / "book")
    notebooks = tmp_path / "html" / "notebooks"
    first = {name: nbformat.read(notebooks / f"{name}.ipynb", 4).cells[0].source for name in ("plain", "asking")}
    assert "pip install" in first["plain"] and "checkers.py" not in first["plain"]
    assert "/raw/main/book/exercises/checkers.py" in first["asking"]
    assert (notebooks / "exercises" / "checkers.py").read_text() == (
        project_dir() / "book" / "exercises" / "checkers.py"
    ).read_text()


def test_tables_and_formulas_of_a_cell_are_rendered(tmp_path):
    """As the book is configured: Markdown that code writes becomes a table with formulas, not raw text."""
    user = yaml.safe_load((project_dir() / "_config.yml").read_text(encoding="utf-8"))
    markdown = "| term | code |\n|---|---|\n| $P(m \\mid t)$ | `x` |"
    output = nbformat.v4.new_output("display_data", {"text/markdown": markdown})
    cells = [nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell("1", outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "index.ipynb")
    chosen = {key: value for key, value in user["sphinx"]["config"].items() if key.startswith("nb_render")}
    options = {"extensions": ["myst_nb"], "nb_execution_mode": "off", "html_theme": "basic"} | chosen
    options["myst_enable_extensions"] = user["parse"]["myst_enable_extensions"]
    app = Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "trees", "html", options, status=None, warning=None)
    app.build()
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<td>" in html and "math" in html and "<p>|" not in html and "$P(m" not in html
