"""What a foreign config may say about a timm model: a registered name, and arguments of known names that only describe a network."""

import re
from functools import cache
from typing import Any

import timm

from ..serialization import InvalidInput


# Numbers, and lists of numbers: sizes, depths, rates.
NUMBERS = frozenset(
    """
    attn_drop_rate attn_mlp_ratio attn_pool_mlp_ratio attn_pool_num_heads attn_ratio base_dim base_dims base_width block_config block_reduce_first
    bn_eps bn_momentum bn_size bottle_ratio cardinality ch_div channel_multiplier channels cls_attn_layers cls_ratio conv_ratio crop_scale decoder_dim deepen_factor
    depth depth_list depth_mult depth_token_only depths dim dim_mul dims down_kernel_size down_patch_size down_stride downsample_ratio
    drop drop_block_rate drop_block_size drop_path_rate drop_rate dropout embed_dim embed_dims eta expand_groups expand_ratio expansion_ratio
    feature_dim ffn_ratio final_chs first_stride focal_levels focal_windows global_att_blocks global_attn_indexes global_block_counts
    global_pos_size group groups growth_rate growth_rates head_dim head_hidden_size head_init_scale head_mul head_widths heads hidden_size
    hidden_sizes img_size img_scale in_chans in_channels in_features init_channels init_values initial_chs inner_dim inplanes input_size
    intermediate_size k_r k_sec inc_sec kernel_size kernel_sizes kernels key_dim layer_scale layer_scale_init_value layer_scale_init_values
    layerscale_value layers levels local_conv_size local_up_to_layer locality_strength ls_init_value mask_unit_size mbconv_expand_ratio
    merge_size mix_block_ratio mlp_ratio mlp_ratios mlp_ratio_token_only msfa_indices msfa_output_resolution n_div neck_chans norm_eps
    num_blocks num_blocks_list num_features num_heads num_heads_inner num_heads_outer num_init_features num_kv_heads num_levels num_reg_tokens
    num_rnn_layers num_vit out_features output_stride parallel_depth partial_dim patch_drop_rate patch_kernel patch_padding patch_size
    patch_sizes patch_stride pool_size pooling_kernel_size pooling_scale pos_drop_rate pos_embed_grid_size position_embedding_size
    proj_drop_rate q_pool q_stride qk_dim reduction ref_feat_shape reg_tokens rel_pos_dim repmixer_kernel_size res_scale_init_values rope_theta
    rope_temperature round_limit scale sd_chance se_ratio serial_depths sr_ratios ssd_expand stages state_dim stem_chs stem_expand_ratio
    stem_hidden_dim stem_kernel_size stem_size stem_stride stem_width stride strides swiglu_align_to transformer_depths
    transition_compression_ratio width width_factor width_list width_mult widths window_ratio window_size window_sizes window_spec
    pretrained_window_sizes extra_norm_period downsample_kernel_size downsample_padding wss
    """.split()
)
# Yes or no, and lists of that.
FLAGS = frozenset(
    """
    aa_stem_only abs_win_pos_embed always_partition attn attn_mlp attn_only_layer_scale avg_down basic bias bn_tf channel_attention channel_attn_v2
    class_token conv_bias conv_init conv_mlp cpe_act distillation distilled downsample_block downsamples dynamic_img_pad dynamic_img_size
    extra_norm_stage fc_norm ffn final_norm fix_init fix_stem fused_conv fused_downsample head_bias head_norm head_norm_first
    is_downsample_block legacy linear lkc_use_act mask_unit_attn mlp_bias multi_conv named_blocks nlhb no_embed_class normalize_modulator
    outlook_attention patch_norm pool_include_prefix pre_norm preact proj_bias qk_norm qkv_bias qkv_fused reparam replace_stem_pool
    scale_attn_inner scale_attn_norm scale_mlp scale_mlp_norm se_downsamples se_from_exp sep_pos_embed sequential_attn shared_rel_pos
    shortcut_root small small_kernels standardize stem_bias stem_mid_norm stem_norm stem_use_scale_branch strict_img_size swiglu_mlp
    tokens_norm transformer_drop_path use_abs_pos use_abs_pos_emb use_clipped_linears use_conv use_conv_embed use_expand_proj use_fc_norm
    use_grn use_lab use_layer_scale use_mix_token use_mlp_head use_msfa use_overlap_down use_pos_emb use_pos_embed use_post_norm
    use_post_norm_in_modulation use_post_transformer_norm use_pre_transformer_norm use_rel_pos use_rel_pos_bias use_rope use_rot_pos_emb
    use_shared_rel_pos_bias v2 vit_stem zero_init_last with_fc input_3x3
    """.split()
)
# A word out of a list that timm has itself: the name of an activation, a normalisation, a kind of pooling.
WORDS = frozenset(
    """
    aa_layer act_layer attn_act_layer attn_stage attn_type attn_types attn_upsample block_type down_op downsample dw_act_layer encoder_pool
    fc_act_layer global_pool head head_fn local_mbconv_norm norm_layer norm_layer_cl pad_type pool_type pos_embed rel_pos_type rope_type
    spatial_conv stem_type token_mixers types union weight_init se_layer
    """.split()
)
WORD = re.compile(r"[A-Za-z0-9_]{0,40}")
MOST_ENTRIES = 100


@cache
def architectures() -> frozenset[str]:
    """Names that `timm.create_model` builds from its own code."""
    return frozenset(timm.list_models())


@cache
def _tagged() -> frozenset[str]:
    return frozenset(timm.list_pretrained())


def timm_architecture(name: Any, field: str = "architecture") -> str:
    """
    The name of a timm model. A tag of weights that timm lists stays, because it may fix the size of the images; another one is taken off.
    Weights are never loaded for it.

    Raises:
        [`~serialization.InvalidInput`]: for anything that timm does not list itself: addresses, repositories, folders, paths.
    """
    bare = name.partition(".")[0] if isinstance(name, str) else ""
    if bare not in architectures():
        raise InvalidInput(f"`{field}` is {shown(name)}, which is not in `timm.list_models()`")
    return str(name) if name in _tagged() else bare


def timm_arguments(arguments: Any) -> dict[str, Any]:
    """
    Keyword arguments of a timm model.

    Raises:
        [`~serialization.InvalidInput`]: for a name that is not known to describe a network only, or a value of another kind.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise InvalidInput(f"`model_args` is {shown(arguments)}, expected names and values")
    for name, value in arguments.items():
        if not _fits(name, value):
            raise InvalidInput(
                f"`model_args`: {shown(name)} is {shown(value)}; only known names with numbers, lists of numbers or short words "
                "may describe a timm model"
            )
    return dict(arguments)


def _fits(name: str, value: Any) -> bool:
    entries = value if isinstance(value, list | tuple) else [value]
    if len(entries) > MOST_ENTRIES:
        return False
    kinds: tuple[tuple[frozenset[str], Any], ...] = (
        (NUMBERS, lambda entry: type(entry) in (int, float)),
        (FLAGS, lambda entry: type(entry) is bool),
        (WORDS, lambda entry: isinstance(entry, str) and WORD.fullmatch(entry) is not None),
    )
    known = [fits for names, fits in kinds if name in names]
    return bool(known) and all(entry is None or any(fits(entry) for fits in known) for entry in entries)


def shown(value: Any) -> str:
    """A foreign value in a message: short, in quotes."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
