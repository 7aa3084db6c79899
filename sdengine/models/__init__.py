"""The networks of Stable Diffusion in torch: the build world's source of truth.

Parameter names equal those of diffusers and transformers, so that published checkpoints
load without a map.
"""
