"""Causal Unsupervised Semantic Segmentation, explained and reproduced (arXiv 2310.07379)."""
