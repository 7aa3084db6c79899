"""From a prompt's text to the U-Net's conditioning, without torch."""
