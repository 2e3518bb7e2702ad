"""Exact fast forms of the losses of steps 1 and 2, equal in value and gradient to the plain ones by test.

Begin with `modularity` (beside `cause_lite.mediator`) and `contrast` (beside `cause_lite.frontdoor`). On a GPU they go
on to `tiled_modularity`, whose `kernels` are in Triton, and `whole_bank`.
"""
