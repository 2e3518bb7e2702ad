"""A solution of the exercise of "The clusterbook"."""

import numpy as np


def modularity(edges, group):
    """Return Q of a grouping of the nodes of a symmetric graph."""
    degree = edges.sum(1)
    total = degree.sum()
    together = group[:, None] == group[None]
    return ((edges - np.outer(degree, degree) / total) * together).sum() / total
