"""How the book's pages are run: two at a time, and a page that fails is named."""

from __future__ import annotations

import pytest
from jupyter_cache import get_cache

from cause_lite.pages import site
from cause_lite.runtime.files import UserError

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
