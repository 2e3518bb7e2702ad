"""A solution of the exercise of "Training the head"."""


def pull(z, positive):
    """Return minus the derivative of one anchor's contrastive loss by each similarity z."""
    return positive / positive.sum() - z.softmax(0)
