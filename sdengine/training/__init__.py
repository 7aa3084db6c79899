"""Training of the demo model: procedural scenes, their captions, the loops and the scorer."""
