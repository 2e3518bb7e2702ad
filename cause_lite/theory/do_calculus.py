"""The steps that lead to the front-door formula, each a rule of the do-calculus that holds in a mutilated graph.

Pearl, Causality, 2nd ed., sections 3.3.2 and 3.4.2. Needs networkx (the extra `book`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

Arrow = tuple[str, str]
FRONT_DOOR: tuple[Arrow, ...] = (("T", "M"), ("M", "Y"), ("U", "T"), ("U", "Y"))


@dataclass(frozen=True)
class Step:
    """An equality that holds where two variables are separated in the graph without some of its arrows.

    Attributes
    ----------
    rule
        The rule of the do-calculus: 2 exchanges doing and seeing, 3 drops an intervention.
    equality
        What the step replaces by what, in TeX.
    no_arrows_into, no_arrows_out_of
        The variables that lose their incoming, or their outgoing arrows.
    separated
        The two variables that must be d-separated in the remaining graph.
    given
        The variables that they are separated by.
    """

    rule: int
    equality: str
    no_arrows_into: frozenset[str]
    no_arrows_out_of: frozenset[str]
    separated: tuple[str, str]
    given: frozenset[str]

    def removed(self, arrows: Sequence[Arrow]) -> list[Arrow]:
        """Return the arrows that the step's graph lacks."""
        return [(a, b) for a, b in arrows if b in self.no_arrows_into or a in self.no_arrows_out_of]

    def holds(self, arrows: Sequence[Arrow]) -> bool:
        """Return whether the graph allows the step."""
        graph = nx.DiGraph(arrows)
        graph.remove_edges_from(self.removed(arrows))
        first, second = self.separated
        return nx.is_d_separator(graph, {first}, {second}, set(self.given))


def _step(rule: int, equality: str, into: str, out_of: str, separated: tuple[str, str], given: str) -> Step:
    return Step(rule, equality, frozenset(into), frozenset(out_of), separated, frozenset(given))


STEPS = (
    _step(2, r"P(m \mid do(t)) = P(m \mid t)", "", "T", ("M", "T"), ""),
    _step(3, r"P(t' \mid do(m)) = P(t')", "M", "", ("T", "M"), ""),
    _step(2, r"P(y \mid t', do(m)) = P(y \mid t', m)", "", "M", ("Y", "M"), "T"),
    _step(2, r"P(y \mid do(t), m) = P(y \mid do(t), do(m))", "T", "M", ("Y", "M"), "T"),
    _step(3, r"P(y \mid do(t), do(m)) = P(y \mid do(m))", "TM", "", ("Y", "T"), "M"),
)
