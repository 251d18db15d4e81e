"""Models that are resized after LoRA was put on them: refused, in every verb, with the remedy."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn

import loralib as lora
from kinds import fill
from models import close, expect_refusal
from peers import library

OLD, NEW = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 21, 22]])
VERBS = {
    "merge": lora.merge,
    "merge for good": partial(lora.merge, keep=False),
    "eject": lora.eject,
    "extract": lora.extract,
    "lora_state_dict": lora.lora_state_dict,
    "merged_state_dict": lora.merged_state_dict,
    "disabled": lambda model: lora.disabled(model).__enter__(),
}


def llama(tied: bool = False) -> nn.Module:
    transformers = library("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=tied)).eval()


def resized(tied: bool = False, **config) -> nn.Module:
    model = llama(tied)
    lora.inject(model, lora.LoRAConfig(r=2, **config))
    fill(model)
    model.resize_token_embeddings(24, mean_resizing=False)
    return model


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_the_first_forward_after_resizing_says_so(target):
    model = resized(target_modules=[target])
    for found in (model, copy.deepcopy(model)):
        for ids in (OLD, NEW):
            with pytest.raises(lora.LayerError, match="resized after LoRA was put on it; resize first"):
                found(ids)


@pytest.mark.parametrize("verb", ["merge", "merge for good", "extract", "lora_state_dict", "merged_state_dict", "disabled"])
def test_an_output_layer_that_was_replaced_is_missed_by_every_verb(verb):
    model = resized(target_modules=["lm_head", "q_proj"])
    with pytest.raises(lora.LayerError, match=r"'lm_head' was adapted, and is a plain layer now, .* resized"):
        VERBS[verb](model)


@pytest.mark.parametrize("verb", VERBS)
def test_tensors_trained_in_full_that_no_longer_fit_their_originals_are_refused(verb):
    model = resized(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    if verb != "extract":  # of a model like this the trained tensors can be had
        message = r"embed_tokens.weight' has shape \(24, 16\), and had \(20, 16\)"
        expect_refusal(lora.LayerError, message, model, lambda: VERBS[verb](model))


def test_a_merged_embedding_that_is_resized_is_refused_when_its_original_would_return():
    model = llama()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["embed_tokens"]))
    lora.merge(fill(model))
    model.resize_token_embeddings(24, mean_resizing=False)
    for verb in (lora.unmerge, lora.eject):
        with pytest.raises(lora.LayerError, match="resized"):
            verb(model)


@pytest.mark.parametrize("how", ["same size", "resized before"])
def test_models_that_still_fit_are_left_alone(how):
    model = llama()
    if how == "resized before":
        model.resize_token_embeddings(24, mean_resizing=False)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["lm_head", "embed_tokens"]))
    y = fill(model)(OLD).logits
    if how == "same size":
        model.resize_token_embeddings(20)
    assert close(model(OLD).logits, y)
    lora.merge(model)
    lora.unmerge(model)
    lora.extract(model)
    reloaded = io.BytesIO()
    torch.save(model, reloaded)
    reloaded.seek(0)
    assert close(torch.load(reloaded, weights_only=False)(OLD).logits, y)
    lora.eject(model)
    assert not model._forward_pre_hooks
    model.resize_token_embeddings(30, mean_resizing=False)
    model(OLD)


def test_a_part_that_is_ejected_by_itself_does_not_count_as_replaced():
    model = llama()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["lm_head", "q_proj"]))
    lora.eject(nn.ModuleList([model.lm_head]))
    model(OLD)
    lora.merge(model)
