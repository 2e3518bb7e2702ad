"""A solution of the exercise of "Why is it hard?"."""

import numpy as np


def purity(groups, classes):
    """Return the percentage of patches that are of the commonest class of their group."""
    right = 0
    for group in np.unique(groups):
        right += np.bincount(classes[groups == group]).max()
    return 100 * right / len(groups)
