"""A causal model small enough to simulate: T -> M -> Y with T <- U -> Y, where U is never observed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class LinearModel:
    """A linear Gaussian model with noise of variance 1; each attribute is the coefficient of one arrow.

    Attributes
    ----------
    t_to_m, m_to_y
        The arrows of the effect.
    u_to_t, u_to_y
        The arrows of the confounder.
    u_to_m, t_to_y
        The arrows that break the front-door criterion when they are not 0.
    """

    t_to_m: float = 0.8
    m_to_y: float = 1.5
    u_to_t: float = 1.0
    u_to_y: float = 1.0
    u_to_m: float = 0.0
    t_to_y: float = 0.0

    @property
    def effect(self) -> float:
        """The derivative of E[Y | do(T = t)] by t, along every directed path from T to Y."""
        return self.t_to_m * self.m_to_y + self.t_to_y

    def sample(self, count: int, rng: np.random.Generator, do_t: np.ndarray | None = None) -> pd.DataFrame:
        """Return `count` rows of T, M, Y, and of the U that an analyst never sees.

        Parameters
        ----------
        count
            Number of rows.
        rng
            Where the noise is drawn from.
        do_t
            The values (count,) that T is set to by intervention; None: T follows its own mechanism.
        """
        u, noise_t, noise_m, noise_y = rng.normal(size=(4, count))
        t = self.u_to_t * u + noise_t if do_t is None else do_t
        m = self.t_to_m * t + self.u_to_m * u + noise_m
        y = self.m_to_y * m + self.t_to_y * t + self.u_to_y * u + noise_y
        return pd.DataFrame({"T": t, "M": m, "Y": y, "U": u})
