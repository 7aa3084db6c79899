"""Quantiles of the beta distribution, without a statistics library at run time.

Source: the regularised incomplete beta function's continued fraction, NIST Digital Library of
Mathematical Functions, 8.17.22; its inverse by bisection.
"""

from __future__ import annotations

import math

import numpy as np

from sdengine.samplers.noise_schedule import Float64

_TERMS = 30
_HALVINGS = 60
_TINY = 1e-300


def beta_quantile(probability: Float64, a: float, b: float) -> Float64:
    """Return x in [0,1] with I_x(a, b) = probability, elementwise to about 1e-14.

    Args:
        probability: in [0,1].
        a, b: positive shapes.
    """
    low, high = np.zeros_like(probability), np.ones_like(probability)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = _incomplete_beta(middle, a, b) < probability
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    middle = (low + high) / 2
    ends: Float64 = np.where(probability <= 0, 0.0, np.where(probability >= 1, 1.0, middle))
    return ends


def _incomplete_beta(x: Float64, a: float, b: float) -> Float64:
    # The fraction converges fast below the mean; above it, the symmetry I_x(a,b) = 1 - I_1-x(b,a).
    swap = x > (a + 1) / (a + b + 2)
    left = _fraction_side(np.where(swap, 0.0, x), a, b)
    right = 1 - _fraction_side(np.where(swap, 1 - x, 0.0), b, a)
    return np.where(swap, right, left)


def _fraction_side(x: Float64, a: float, b: float) -> Float64:
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):
        front = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta) / a
    # Lentz's evaluation of 1 / (1 + d1 / (1 + d2 / (1 + ...))).
    c = np.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value = value * c * d
    result: Float64 = front * value
    return result


def _away_from_zero(x: Float64) -> Float64:
    return np.where(np.abs(x) < _TINY, _TINY, x)
