"""A solution of the exercise of "An audit"."""

import torch


def reached(loss, module):
    """Return the sorted names of a module's parameters that the gradient of a loss reaches."""
    names, parameters = zip(*module.named_parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return sorted(name for name, gradient in zip(names, gradients) if gradient is not None)
