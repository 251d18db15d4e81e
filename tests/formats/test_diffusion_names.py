"""Names with underscores are told back to dots by a vocabulary, and those of the original code to diffusers'."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.formats.diffusion_names import dotted, underscored


@pytest.mark.parametrize(
    "flat",
    ["", "_", "to_q_", "down_blocks__0", "to", "surprise", "input_blocks_1_2_proj_in", "input_blocks_0_1_proj_in",
     "output_blocks_0_1_conv", "output_blocks_2_3_conv", "input_blocks_4_0_op", "middle_block_3_proj_in",
     "middle_block_0_proj_in", "input_blocks_1_0_in_layers_0"],
)  # fmt: skip
def test_what_is_no_name_is_not_told_back(flat):
    assert dotted(flat) is None


@given(
    st.lists(st.sampled_from(["down", "blocks", "to", "q", "0", "conv", "in", "proj", "1", "op", "input", ""])).map("_".join)
)
def test_what_is_told_back_has_the_same_letters(flat):
    name = dotted(flat)
    assert name is None or underscored(name) == flat or flat.startswith(("input_blocks", "output_blocks"))


@pytest.mark.parametrize(
    ("flat", "name"),
    [
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("input_blocks_2_1_proj_in", "down_blocks.0.attentions.1.proj_in"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_4_1_transformer_blocks_0_attn1_to_q", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("output_blocks_0_0_skip_connection", "up_blocks.0.resnets.0.conv_shortcut"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks_11_1_proj_out", "up_blocks.3.attentions.2.proj_out"),
        ("middle_block_0_emb_layers_1", "mid_block.resnets.0.time_emb_proj"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("out_2", "conv_out"),
        ("text_model_encoder_layers_11_self_attn_out_proj", "text_model.encoder.layers.11.self_attn.out_proj"),
        ("encoder_block_0_layer_1_DenseReluDense_wi_0", "encoder.block.0.layer.1.DenseReluDense.wi_0"),
    ],
)
def test_names_of_both_worlds_are_told_back(flat, name):
    assert dotted(flat) == name


@pytest.mark.parametrize(
    "flat",
    ["input_blocks_3_1_op", "input_blocks_3_0_in_layers_2", "output_blocks_2_0_conv", "output_blocks_1_2_proj_in"],
)
def test_blocks_that_the_original_code_does_not_have_are_no_names(flat):
    assert dotted(flat) is None
