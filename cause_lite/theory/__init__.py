"""The causal story on models small enough to simulate: the front-door criterion and its estimators.

Begin with `model`, whose data `estimators` reads. `do_calculus` checks each step to the formula on its graph, and
`estimand` is the formula in symbols; these two need networkx and sympy, which the extra `book` brings. Nothing here is
used to train or to predict.
"""

from cause_lite.theory.estimators import bootstrap_interval, frontdoor_discrete, frontdoor_effect
from cause_lite.theory.model import ConceptModel, LinearModel

__all__ = ["ConceptModel", "LinearModel", "bootstrap_interval", "frontdoor_discrete", "frontdoor_effect"]
