"""Findings of axe-core on a page: what keeps some readers from reading it."""

from __future__ import annotations

from functools import lru_cache

from playwright.sync_api import Page

from cause_lite.pages.assets import Asset, fetch_assets
from cause_lite.runtime.files import project_dir

AXE = {"axe": Asset("axe-core@4.14.1", "", ("axe.min.js", "LICENSE"))}
SEVERE = ("serious", "critical")  # the kinds of finding that fail a page
AUDIT = """() => axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(rule =>
  ({id: rule.id, impact: rule.impact, help: rule.help,
    places: rule.nodes.map(node => node.target.flat().join(' '))})))"""


@lru_cache
def _source() -> str:
    """Return the script of axe-core, fetched once; pages get it from here, not from the site."""
    folder = project_dir() / "_build" / "check"
    fetch_assets(AXE, folder)
    return (folder / "axe" / "axe.min.js").read_text(encoding="utf-8")


def severe_findings(page: Page) -> list[str]:
    """Return each serious or critical finding on an open page, in words, with up to three of its places."""
    page.evaluate(_source())
    found = [rule for rule in page.evaluate(AUDIT) if rule["impact"] in SEVERE]
    return [f"{rule['id']}: {rule['help']}, at {'; '.join(rule['places'][:3])}" for rule in found]
