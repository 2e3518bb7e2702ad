"""Causal Unsupervised Semantic Segmentation, explained and reproduced (arXiv 2310.07379)."""

from cause_lite.checkpoints import load

__all__ = ["load"]
