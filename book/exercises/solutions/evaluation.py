"""A solution of the exercise of "From features to a number"."""


def mean_iou(counts):
    """Return mIoU in percent of pixels by cluster and class, cluster a being named class a."""
    hits = counts.diagonal()
    union = counts.sum(1) + counts.sum(0) - hits
    return 100 * (hits / union).mean()
