"""Agreement of clusters and classes without a one-to-one matching, from their confusion."""

from __future__ import annotations

import numpy as np
from scipy.special import comb
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score


def many_to_one_accuracy(confusion: np.ndarray) -> float:
    """Return the share of pixels, in percent, that are right when each cluster gets its commonest class.

    Several clusters may get one class. `confusion` is clusters by classes, (K, C), in pixels; NaN without a pixel.
    """
    pixels = confusion.sum()
    return 100 * float(confusion.max(1).sum() / pixels) if pixels else float("nan")


def normalised_mutual_information(confusion: np.ndarray) -> float:
    """Return the mutual information over the mean of both entropies, 0..1, of a confusion (K, C)."""
    information = mutual_info_score(None, None, contingency=confusion)
    mean = (entropy(confusion.sum(0)) + entropy(confusion.sum(1))) / 2
    return float(information / mean) if mean else 1.0


def adjusted_rand_index(confusion: np.ndarray) -> float:
    """Return the share of pixel pairs that both groupings treat alike, corrected for chance, of a confusion (K, C).

    1 for equal groupings, about 0 for unrelated ones (Hubert and Arabie, 1985).
    """
    counts = np.asarray(confusion, dtype=float)
    together, clusters, classes = (comb(part, 2).sum() for part in (counts, counts.sum(1), counts.sum(0)))
    expected = clusters * classes / comb(counts.sum(), 2)
    largest = (clusters + classes) / 2
    return float((together - expected) / (largest - expected)) if largest != expected else 1.0


def effective_clusters(confusion: np.ndarray) -> float:
    """Return exp(entropy of the clusters' sizes) of a confusion (K, C): how many of equal size are as diverse."""
    return float(np.exp(entropy(confusion.sum(1))))


def agreement(confusion: np.ndarray) -> dict[str, float]:
    """Return every score that needs no one-to-one matching, of a confusion (K, C).

    Many-to-one accuracy in percent, `nmi` and `ari`, `information` of clusters and classes in nats, and the number of
    `effective` clusters.
    """
    counts = np.asarray(confusion)
    return {
        "information": float(mutual_info_score(None, None, contingency=counts)),
        "effective": effective_clusters(counts),
        "many_to_one": many_to_one_accuracy(counts),
        "nmi": normalised_mutual_information(counts),
        "ari": adjusted_rand_index(counts),
    }
