"""Building: from a checkpoint to a bundle."""
