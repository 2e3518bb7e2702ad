"""Exact fast forms of the losses of steps 1 and 2, equal in value and gradient to the plain ones by test.

Begin with `modularity` (beside `cause_lite.mediator`) and `contrast` (beside `cause_lite.frontdoor`). On a GPU the
modularity takes `kernels`, which are in Triton.
"""
