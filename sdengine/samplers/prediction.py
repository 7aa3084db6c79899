"""Prediction types: clean latents x0 from a network's output m, as linear forms.

A linear form (p, q) stands for p * x + q * m. "Scaled" latents are x = alpha x0 + sigma_hat noise
with alpha^2 + sigma_hat^2 = 1; "unscaled" ones are x = x0 + sigma noise.
"""

from __future__ import annotations

from math import sqrt

Form = tuple[float, float]


def clean_from_scaled(prediction_type: str, alpha: float, sigma_hat: float) -> Form:
    """Return x0 as a form of scaled latents and the network's output."""
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma_hat / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma_hat
    return 0.0, 1.0


def noise_from_scaled(prediction_type: str, alpha: float, sigma_hat: float) -> Form:
    """Return the noise as a form of scaled latents and the network's output."""
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return sigma_hat, alpha
    return 1 / sigma_hat, -alpha / sigma_hat


def clean_from_unscaled(prediction_type: str, sigma: float) -> Form:
    """Return x0 as a form of unscaled latents and the network's output."""
    if prediction_type == "epsilon":
        return 1.0, -sigma
    if prediction_type == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / sqrt(sigma**2 + 1)
    return 0.0, 1.0
