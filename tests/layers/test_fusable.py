"""diffusers' attention copies its projections' weights when it fuses them: no update is left behind, whichever comes first."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from models import close, expect_refusal, randomize, snapshot
from peers import library

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

UNET = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 4, 8),
}


def unet() -> nn.Module:
    torch.manual_seed(0)
    return library("diffusers").UNet2DConditionModel(**UNET).eval()


def flux() -> nn.Module:
    torch.manual_seed(0)
    return library("diffusers").FluxTransformer2DModel(**FLUX).eval()


def of_unet(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return model(torch.randn(1, 4, 8, 8), 3, encoder_hidden_states=torch.randn(1, 3, 6)).sample


def of_flux(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    ids = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(2, 3)}
    states = {"hidden_states": torch.randn(1, 4, 4), "encoder_hidden_states": torch.randn(1, 2, 8)}
    return model(**states, **ids, pooled_projections=torch.randn(1, 8), timestep=torch.ones(1)).sample


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "unet": (unet, of_unet),  # whose processors name the layers they call
    "flux": (flux, of_flux),  # whose attention does
}
every_model = pytest.mark.parametrize("kind", MODELS)
CONFIG = lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"])


@torch.no_grad()
@every_model
def test_projections_with_updates_are_not_fused_and_the_model_goes_on_with_them(kind):
    build, output = MODELS[kind]
    model = build()
    before = snapshot(model)
    lora.inject(model, CONFIG)
    randomize(model)
    y = output(model)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(lora.LayerError, match=r"to_q, to_v of \w*Attention have LoRA updates, which would be lost"):
            other.fuse_qkv_projections()
        assert close(output(other), y, factor=8)
    lora.eject(model)
    vars(model).pop("original_attn_processors", None)  # which fuse_qkv_projections sets before it begins
    assert snapshot(model) == before


@torch.no_grad()
@every_model
def test_what_was_merged_for_good_can_be_fused(kind):
    build, output = MODELS[kind]
    model = build()
    lora.inject(model, CONFIG)
    randomize(model)
    y = output(model)
    lora.merge(model, keep=False)
    model.fuse_qkv_projections()
    assert close(output(model), y, factor=256)


@every_model
def test_projections_that_are_not_called_since_fused_are_refused(kind):
    build, _ = MODELS[kind]
    model = build()
    model.fuse_qkv_projections()
    message = r"to_[qv]' of .* its attention calls the fused projection to_k?q?k?v in its place; call unfuse_qkv_projections"
    expect_refusal(lora.TargetError, message, model, lambda: lora.inject(model, CONFIG))
    model.unfuse_qkv_projections()
    assert lora.inject(model, CONFIG)


def test_the_fused_projection_itself_can_be_adapted_and_is_not_taken_apart_then():
    model = flux()
    model.fuse_qkv_projections()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["to_qkv"]))
    with pytest.raises(lora.LayerError, match=r"to_qkv of FluxAttention have .* lost if they were unfused"):
        model.unfuse_qkv_projections()
    lora.eject(model)
    model.unfuse_qkv_projections()


def test_attention_without_updates_is_fused():
    model = flux()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["proj_out"]))
    model.fuse_qkv_projections()
    model.unfuse_qkv_projections()
