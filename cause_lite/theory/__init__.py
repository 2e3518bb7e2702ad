"""The causal story on a model small enough to simulate: the front-door criterion and its estimators.

Begin with `model`, whose data `estimators` reads. Nothing here is used to train or to predict.
"""

from cause_lite.theory.estimators import bootstrap_interval, frontdoor_discrete, frontdoor_effect
from cause_lite.theory.model import LinearModel

__all__ = ["LinearModel", "bootstrap_interval", "frontdoor_discrete", "frontdoor_effect"]
