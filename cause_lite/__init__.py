"""Causal Unsupervised Semantic Segmentation, explained and reproduced (arXiv 2310.07379)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cause_lite.checkpoints import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load`, and torch with it, when it is first asked for: `cause-lite --help` does without."""
    if name == "load":
        from cause_lite.checkpoints import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
