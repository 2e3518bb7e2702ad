"""Append to every page of the book how it was built, and links to its notebook. A Sphinx extension."""

from __future__ import annotations

import html
import os

import torch
from sphinx.application import Sphinx

from cause_lite.runtime import provenance
from cause_lite.runtime.device import choose_device, device_name

COLAB = "https://colab.research.google.com/github/{owner}/blob/notebooks/{page}.ipynb"
BINDER = "https://mybinder.org/v2/gh/{owner}/notebooks?labpath={page}.ipynb"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("html-page-context", add_footer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_footer(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Append the footer to a page that was run; pages that are lists have none."""
    run = getattr(app.env, "nb_metadata", {}).get(page, {}).get("exec_data")
    if doctree is None or run is None:
        return
    owner = app.config.html_theme_options["repository_url"].removeprefix("https://github.com/")
    context["body"] += footer(page, run["runtime"], "../" * page.count("/"), owner)


def footer(page: str, seconds: float | None, root: str, owner: str) -> str:
    """Return HTML: commit, date, device, time and versions of the build, and where to run the page.

    Parameters
    ----------
    page
        Its path in the book, without an ending.
    seconds
        How long its code ran; None or 0 where it holds none.
    root
        The relative address of the book's root.
    owner
        Owner and name of the repository, as in `owner/name`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
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
