"""Contexts: names of what a U-Net's attention over the text reads.

A U-Net reads the text once, or where hypernetworks change it, once as what keys are made of and
once as what values are made of.
"""

from __future__ import annotations

TEXT = "encoder_hidden_states"
CONTEXTS = ("context_k", "context_v")
