"""Prompts: from their text to the U-Net's conditioning, without torch."""
