"""The causal story on models small enough to simulate: the front-door criterion and its estimators.

Begin with `model`, whose data `estimators` reads; `estimand` is the same formula in symbols and needs sympy, which
the book's extra brings. Nothing here is used to train or to predict.
"""
