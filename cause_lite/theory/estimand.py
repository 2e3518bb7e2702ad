"""The front-door estimand in symbols, to compare with what dowhy derives. Needs sympy (the extra `book`)."""

from __future__ import annotations

import sympy
from sympy.stats import Expectation


def frontdoor_estimand() -> sympy.Expr:
    """Return the front door's estimand of a mean effect, E[dY/dM dM/dT]."""
    t, m, y = sympy.symbols("T M Y")
    return Expectation(sympy.Derivative(y, m) * sympy.Derivative(m, t))


def linear_estimand() -> sympy.Expr:
    """Return the same estimand in a linear model: a b, the slope of M on T times that of Y on M."""
    a, b = sympy.symbols("a b")
    return a * b
