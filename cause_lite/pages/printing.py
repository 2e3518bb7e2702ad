"""Print the built book as one PDF."""

from __future__ import annotations

import io
from pathlib import Path

from playwright.sync_api import Browser, PdfMargins
from pypdf import PdfWriter

from cause_lite.pages.browser import open_page
from cause_lite.runtime.files import write_whole
from cause_lite.runtime.progress import track

# On paper: no navigation, no folded code; solutions unfolded.
PRINT = """#print-main-content, details.hide, button.toggle-button, nav, header, .bd-sidebar-primary,
.bd-sidebar-secondary, .bd-header-article, .prev-next-footer, .bd-footer-content, .headerlink, button.copybtn {
  display: none !important;
}"""
CONTENTS = "() => [...document.querySelectorAll('nav.bd-links a.internal')].map(a => [a.href, a.textContent.trim()])"
UNFOLD = "document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'))"


def print_book(browser: Browser, address: str, target: Path) -> int:
    """Print all pages, in the order of the contents, as one PDF with an outline.

    Parameters
    ----------
    browser, address
        An open browser, and where the book is served.
    target
        The PDF to write.

    Returns
    -------
    int
        The number of its pages.
    """
    page, book = browser.new_page(), PdfWriter()
    page.goto(f"{address}/intro.html")
    for url, title in track([[f"{address}/intro.html", "CAUSE, step by step"], *page.evaluate(CONTENTS)], "Printing"):
        open_page(page, url)
        page.add_style_tag(content=PRINT)
        page.evaluate(UNFOLD)
        margin: PdfMargins = {"top": "15mm", "bottom": "15mm", "left": "15mm", "right": "15mm"}
        book.append(io.BytesIO(page.pdf(format="A4", margin=margin)), outline_item=title)
    page.close()
    write_whole(target, book.write)
    return len(book.pages)
