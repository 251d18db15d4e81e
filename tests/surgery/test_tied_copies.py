"""Whole weights that an adapter repeats of a model that ties them: left out where they are the model's own, else refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from models import Tied, expect_refusal, same_bits
from peers import library

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def adapter_of(model: nn.Module, layer: str, stored: torch.dtype, **settings) -> lora.Adapter:
    """An update of `embed` or `head`, with that layer's whole weight, as PEFT stores it."""
    kind, shape = (lora.EmbeddingUpdate, (2, 11, 6)) if layer == "embed" else (lora.LoRAUpdate, (2, 6, 11))
    r, d, k = shape
    update = kind(torch.randn(r, d), torch.randn(k, r), 4)
    tensors = {f"{layer}.weight": model.embed.weight.detach().to(stored, copy=True)}
    return lora.Adapter(lora.LoRAConfig(**settings), {layer: update}, tensors)


@pytest.mark.parametrize("layer", ["embed", "head"])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("of_model", DTYPES)
def test_the_models_own_weight_is_left_out(layer, stored, of_model):
    torch.manual_seed(0)
    model, other = Tied().to(of_model), Tied().to(of_model)
    other.load_state_dict(model.state_dict())
    adapter = adapter_of(model, layer, stored)
    lora.attach(model, adapter)
    assert model.embed.weight is model.head.weight
    lora.attach(other, replace(adapter, config=adapter.settings, tensors={}))
    ids = torch.arange(11)[None]
    assert same_bits(model(ids).detach(), other(ids).detach())
    assert not lora.extract(model).tensors
    lora.attach(model, adapter)  # a second time, onto the layers that are there


def test_another_one_is_refused_by_name():
    model = Tied()
    adapter = adapter_of(model, "embed", torch.float32)
    changed = adapter.tensors["embed.weight"] + 1
    for tensors in ({"embed.weight": changed}, {"embed.weight": changed.half()}):
        expect_refusal(
            lora.AttachError,
            r"embed.weight: tied to head.weight in the model, and the adapter brings another one than",
            model,
            lambda tensors=tensors: lora.attach(model, replace(adapter, config=adapter.settings, tensors=tensors)),
        )


def test_what_was_asked_for_is_not_left_out():
    model = Tied()
    adapter = adapter_of(model, "embed", torch.float32, modules_to_save=["embed"])
    expect_refusal(lora.AttachError, "name the modules of both in modules_to_save", model, lambda: lora.attach(model, adapter))


def test_weights_without_values_are_not_compared():
    with torch.device("meta"):
        model = Tied()
    adapter = adapter_of(Tied(), "head", torch.float32)
    with pytest.raises(
        lora.AttachError, match=r"head.weight: tied to embed.weight in the model, whose values cannot be compared"
    ):
        lora.attach(model, adapter)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_folder_of_peft_computes_what_peft_computes(target, tmp_path):
    peft, t = library("peft"), library("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}

    def made() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = t.LlamaForCausalLM(t.LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
        return model

    trained = peft.get_peft_model(made(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", target]))
    with torch.no_grad():
        for name, p in trained.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))
    trained.save_pretrained(tmp_path, save_embedding_layers="auto")
    ids = torch.arange(12)[None]

    def logits(model: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(ids).logits
        return found

    adapter, model = lora.load(tmp_path), made()
    assert adapter.tensors
    lora.attach(model, adapter)
    assert torch.allclose(logits(model), logits(peft.PeftModel.from_pretrained(made(), tmp_path).eval()), atol=1e-5)
