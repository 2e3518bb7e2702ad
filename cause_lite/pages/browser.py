"""Headless Chromium, the built book on a local port, and a page that is ready to be looked at or printed."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from cause_lite.runtime.files import UserError

NO_OTHER_HOST = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def chromium() -> str:
    """Return the path of a Chromium or Chrome on this machine.

    Raises
    ------
    UserError
        When there is none.
    """
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome")
    path = next((path for name in names if name and (path := shutil.which(name))), None)
    if path is None:
        raise UserError("book-check needs Chromium: install the package `chromium`, or set CHROMIUM to its path")
    return path


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Start a headless browser that finds no host but this machine, and close it after the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", NO_OTHER_HOST])
        yield browser
        browser.close()


def open_page(page: Page, url: str) -> None:
    """Load a page, and wait until its formulas are set."""
    page.goto(url, wait_until="load")
    page.wait_for_function("() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Send files without a line for each request."""

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send a file; of the icon that browsers ask for by themselves, say that there is none."""
        if self.path != "/favicon.ico":
            return super().do_GET()
        self.send_response(http.HTTPStatus.NO_CONTENT)
        self.end_headers()
        return None


class QuietServer(http.server.ThreadingHTTPServer):
    """Serve files; a page that is closed while it loads is no fault."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a local port within the block, as a web server would, and give its address."""
    server = QuietServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
