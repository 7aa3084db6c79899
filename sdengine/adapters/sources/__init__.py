"""Sources of a bundle's weights: other checkpoints, and their mixtures."""
