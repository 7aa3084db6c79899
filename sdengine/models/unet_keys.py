"""Keys of diffusers' U-Net configurations that are not its fields here.

Source: diffusers' UNet2DConditionModel, and its EMAModel for what training left behind.
"""

from __future__ import annotations

# What diffusers can vary and the published Stable Diffusion networks do not.
FIXED = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# What needs one of those switches, changes no result, or only training reads or left behind.
HARMLESS = (
    "addition_embed_type_num_heads",
    "class_embeddings_concat",
    "decay",
    "dropout",
    "inv_gamma",
    "mid_block_only_cross_attention",
    "min_decay",
    "optimization_step",
    "power",
    "time_embedding_dim",  # which has to be what it is: see `from_dict`
    "upcast_attention",
    "update_after_step",
    "use_ema_warmup",
)
