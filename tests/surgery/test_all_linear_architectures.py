"""all-linear on tiny models of many architectures: every adapted layer is called and gets a gradient, and merged equals
unmerged."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import loralib as lora
from kinds import fill
from loralib.surgery.survey import Survey
from peers import library

pytestmark = pytest.mark.slow

NAMES = {  # of sizes in configurations
    16: "hidden_size n_embd d_model dim emb_dim word_embed_proj_dim embedding_size",
    24: "intermediate_size d_ff ffn_dim hidden_dim d_inner encoder_ffn_dim decoder_ffn_dim moe_intermediate_size n_inner "
    "shared_expert_intermediate_size ffn_hidden_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers "
    "num_attention_heads n_head n_heads num_heads num_key_value_heads encoder_attention_heads decoder_attention_heads "
    "num_local_experts num_experts num_experts_per_tok n_routed_experts",
    8: "head_dim d_kv attention_head_size patch_size",
    64: "max_position_embeddings n_positions n_ctx max_seq_len",
    40: "vocab_size encoder_vocab_size decoder_vocab_size",
    1: "pad_token_id bos_token_id eos_token_id decoder_start_token_id",
}
SMALL = {name: size for size, names in NAMES.items() for name in names.split()}
SMALL |= {
    "initializer_range": 0.3,
    "image_size": 32,
    "state_size": 4,
    "rotary_dim": 4,
    "num_labels": 3,
    "tie_word_embeddings": False,
}
SMALL |= {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}


def text() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 40, (2, 7))}


def both() -> dict[str, Tensor]:
    return text() | {"decoder_input_ids": torch.randint(3, 40, (2, 5))}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def sound() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 800)}


WAV = {"conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
       "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer", "mask_time_prob": 0.0,
       "tdnn_dim": (8, 8, 8), "tdnn_kernel": (3, 2, 1), "tdnn_dilation": (1, 1, 1), "xvector_output_dim": 8}  # fmt: skip
DECODERS = """
GPT2LMHeadModel GPTNeoXForCausalLM GPTJForCausalLM BloomForCausalLM LlamaForCausalLM MistralForCausalLM
Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Gemma2ForCausalLM PhiForCausalLM Phi3ForCausalLM StableLmForCausalLM
Starcoder2ForCausalLM OlmoForCausalLM Olmo2ForCausalLM CohereForCausalLM GraniteForCausalLM OPTForCausalLM
GPTBigCodeForCausalLM MixtralForCausalLM Qwen2MoeForCausalLM MambaForCausalLM FalconMambaForCausalLM XLNetLMHeadModel
XGLMForCausalLM PersimmonForCausalLM NemotronForCausalLM SmolLM3ForCausalLM GlmForCausalLM HeliumForCausalLM PhimoeForCausalLM
OpenAIGPTLMHeadModel BioGptForCausalLM MptForCausalLM FalconForCausalLM
"""
ENCODERS = """
BertModel RobertaModel XLMRobertaModel DistilBertModel ElectraModel AlbertModel MPNetModel DebertaModel DebertaV2Model
CamembertModel ConvBertModel FNetModel RoFormerModel NystromformerModel MegatronBertModel ErnieModel ModernBertModel EsmModel
BertForMaskedLM RobertaForSequenceClassification BertForTokenClassification BertForQuestionAnswering
LlamaForSequenceClassification GPT2ForTokenClassification
"""
BOTH = """
T5ForConditionalGeneration MT5ForConditionalGeneration BartForConditionalGeneration PegasusForConditionalGeneration
MBartForConditionalGeneration BlenderbotForConditionalGeneration MarianMTModel M2M100ForConditionalGeneration
ProphetNetForConditionalGeneration
"""
IMAGES = "ViTModel DeiTModel BeitModel Dinov2Model ViTForImageClassification SiglipVisionModel CLIPVisionModel"
MODELS: dict[str, tuple[Callable[[], dict[str, Tensor]], dict[str, Any]]] = {
    **dict.fromkeys([*DECODERS.split(), *ENCODERS.split()], (text, {})),
    **dict.fromkeys(BOTH.split(), (both, {})),
    **dict.fromkeys(IMAGES.split(), (image, {})),
    **dict.fromkeys(["Wav2Vec2ForXVector", "WavLMModel", "HubertModel"], (sound, WAV)),
    "GPTNeoForCausalLM": (text, {"attention_types": [[["global", "local"], 1]]}),
    "CodeGenForCausalLM": (text, {"n_head": 4, "num_attention_heads": 4}),
    "Mamba2ForCausalLM": (text, {"num_heads": 4, "n_groups": 1}),
    "LEDForConditionalGeneration": (lambda: both() | {"global_attention_mask": torch.eye(2, 7).long()}, {}),
    "LayoutLMv3Model": (
        lambda: text() | {"bbox": torch.randint(0, 60, (2, 7, 4))},
        {"coordinate_size": 3, "shape_size": 2, "visual_embed": False},
    ),
}


def build(name: str, own: dict[str, Any]) -> nn.Module:
    """A tiny model of the class `name`, with random weights, such that every part of it shows."""
    cls = getattr(library("transformers"), name)
    fields = vars(cls.config_class()).keys() | cls.config_class.attribute_map.keys()
    torch.manual_seed(0)
    return cls(cls.config_class(**{key: value for key, value in SMALL.items() if key in fields} | own)).eval()


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = model(**inputs)
    return [leaf for leaf in tree_leaves(dict(found)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def far(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference of two models' outputs, relative to the largest value of each."""
    return max(float((x - y).detach().abs().max() / (1 + y.detach().abs().max())) for x, y in zip(a, b, strict=True))


def not_called(model: nn.Module, names: set[str], inputs: dict[str, Tensor]) -> set[str]:
    seen = set()
    hooks = [model.get_submodule(n).register_forward_pre_hook(lambda m, a, n=n: seen.add(n)) for n in names]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return names - seen


@pytest.mark.parametrize("name", MODELS)
def test_all_linear_adapts_what_is_called_and_trained_and_merges_to_the_same(name):
    make, own = MODELS[name]
    model = build(name, own)
    torch.manual_seed(1)
    inputs = make()
    base = [y.detach() for y in outputs(model, inputs)]
    bound = lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=2))
    lora.mark_only_lora_as_trainable(model)
    assert far(outputs(model, inputs), base) < 1e-6
    fill(model)
    adapted = Survey(model).adapted
    assert adapted.keys() == set(bound)
    with torch.no_grad():
        for layer in adapted.values():  # small updates, which no non-linearity blows up
            layer.lora_B.mul_(0.1)
    called = {n.rpartition(".")[0] if isinstance(layer, lora.layers.ExpertWeight) else n for n, layer in adapted.items()}
    assert not_called(model, called, inputs) == set()
    y = outputs(model, inputs)
    sum((part * torch.randn_like(part)).sum() for part in y).backward()
    assert lora.check_trained(model) == {}
    assert far(y, base) > 1e-4
    with lora.merged(model):
        assert far(outputs(model, inputs), y) < 1e-5
    covered = {*bound, *bound.left_out, *(n.removesuffix(".q_proj") for n in bound)}  # an attention holds its projections
    assert [n for n in matrices(model) if n.rpartition(".")[0] not in covered and n not in covered] == []
    lora.eject(model)
    assert far(outputs(model, inputs), base) < 1e-6


def matrices(model: nn.Module) -> Iterator[str]:
    """The names of all parameters that an update could change; experts have biases of two dimensions."""
    others = ("lora_A", "lora_B", "bias")
    return (name for name, parameter in model.named_parameters() if parameter.dim() > 1 and not name.endswith(others))


def test_there_are_at_least_forty():
    assert len(MODELS) >= 40
