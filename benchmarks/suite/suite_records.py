"""Records of the suite: their schema."""

SCHEMA = 3
