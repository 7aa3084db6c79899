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


def clean_from_edm(prediction_type: str, sigma: float, sigma_data: float) -> Form:
    """Return x0 as a form of unscaled latents and the output of a network that EDM preconditions.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.
    2022), table 1; for v prediction the output's sign is the other one.
    """
    variance = sigma**2 + sigma_data**2
    sign = -1.0 if prediction_type == "v_prediction" else 1.0
    return sigma_data**2 / variance, sign * sigma * sigma_data / sqrt(variance)


def clean_from_unscaled(prediction_type: str, sigma: float) -> Form:
    """Return x0 as a form of unscaled latents and the network's output."""
    if prediction_type == "epsilon":
        return 1.0, -sigma
    if prediction_type == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / sqrt(sigma**2 + 1)
    return 0.0, 1.0
