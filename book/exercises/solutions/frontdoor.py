"""A solution of the exercise of "The front door"."""


def front_door(p_t, p_m, p_y):
    """Return P(Y = 1 | do(t)) for each t, from P(t), P(m | t) and P(Y = 1 | t, m)."""
    over_everywhere = p_t @ p_y  # (M,): the sum over t' of P(t') P(Y = 1 | t', m)
    return p_m @ over_everywhere
