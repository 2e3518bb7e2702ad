"""The causal story on a model small enough to simulate: the front-door criterion and its estimators.

Begin with `causal.LinearModel`. Nothing here is used to train or to predict.
"""
