"""What the book adds to its pages as a Sphinx extension: numbers that moved above, how the page was made below."""

from __future__ import annotations

import html
import os
from functools import lru_cache

import pandas as pd
import torch
from sphinx.application import Sphinx

from cause_lite.pages import verify
from cause_lite.pages.printing import chromium
from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device, device_name

COLAB = "https://colab.research.google.com/github/{owner}/blob/notebooks/{page}.ipynb"
BINDER = "https://mybinder.org/v2/gh/{owner}/notebooks?labpath={page}.ipynb"
LATE = 900  # after the extensions that add scripts


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; pages may say `{only} printed` of what needs the book's PDF."""
    if chromium():
        app.tags.add("printed")
    app.connect("html-page-context", add_notes)
    app.connect("html-page-context", drop_thebe, priority=LATE)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def drop_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Leave out the scripts of sphinx-thebe, which nothing uses, and which declare one constant twice."""
    context["script_files"] = [
        script for script in context["script_files"] if "thebe" not in f"{script} {script.attributes}".lower()
    ]


def add_notes(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Add the notes to a page that was run; pages that are lists have none."""
    about = getattr(app.env, "nb_metadata", {}).get(page, {})
    if doctree is None or about.get("exec_data") is None:
        return
    owner = app.config.html_theme_options["repository_url"].removeprefix("https://github.com/")
    below = footer(page, about["exec_data"]["runtime"], "../" * page.count("/"), owner)
    context["body"] = moved_note(about.get("glue", ())) + context["body"] + below


@lru_cache
def _moved() -> dict[str, verify.Check]:
    return {check.key: check for check in verify.verify() if check.status == "moved"}


def moved_note(keys: list[str]) -> str:
    """Return HTML that lists the numbers among `keys` that moved, with both values; nothing where none did."""
    checks = [check for key, check in _moved().items() if key in keys]
    if not checks:
        return ""
    lines = [(c.key, f"{c.expected:.{c.digits + 1}f}", f"{c.found:.{c.digits + 1}f}") for c in checks]
    table = pd.DataFrame(lines, columns=["number", "record", "this build"]).to_html(index=False, border=0)
    differs = "; ".join(sorted({entry for check in checks for entry in check.differs})) or "no entry"
    title = "<p class='admonition-title'>Numbers of this page that moved</p>"
    note = f"<p>What differs in the environment: {html.escape(differs)}.</p>"
    return f"<div class='admonition warning moved'>{title}{table}{note}</div>"


def footer(page: str, seconds: float | None, root: str, owner: str) -> str:
    """Return HTML: how a page was made, in how many seconds, and where to run it; `root` is the book's, relative."""
    versions = ", ".join(f"{k} {v}" for k, v in provenance.versions().items())
    facts = {
        "commit": provenance.commit(),
        "built": provenance.now(),
        "versions": versions,
        "device": f"{device_name(choose_device('auto'))}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "this page ran for": f"{seconds:.1f} s" if seconds else "no time: it holds no code",
        "seeds": "those in the code above; a number's own is behind it, click it",
    }
    lines = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    links = {
        "Notebook": f"{root}notebooks/{page}.ipynb",
        "Open in Colab": COLAB.format(owner=owner, page=page),
        "Open in Binder": BINDER.format(owner=owner, page=page),
    }
    anchors = " · ".join(f'<a href="{html.escape(url)}">{name}</a>' for name, url in links.items())
    summary = "<summary>How this page was made</summary>"
    return f"<details class='origin'>{summary}<dl>{lines}</dl></details><p class='origin'>{anchors}</p>"
