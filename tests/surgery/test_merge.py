"""Merging whole models and back, and running them with LoRA disabled."""

import pytest
import torch
from torch import nn

import loralib as lora
from models import Encoder, Tied, bits, close, injected, mlp, randomize, same_bits, snapshot, trained_head
from peers import library


def test_merge_computes_the_same_and_unmerge_restores_every_parameter_object():
    model, x = injected(Encoder()).eval(), torch.randn(4, 6)
    before, y = snapshot(model), model(x)
    lora.merge(model)
    assert close(model(x), y, factor=64)
    assert all(m.merged for m in model.modules() if isinstance(m, lora.LoRALayer))
    lora.unmerge(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_thousand_merges_leave_every_bit(dtype):
    model = injected(mlp(6, 5)).to(dtype)
    before = snapshot(model)
    for _ in range(1000):
        with lora.merged(model):
            assert model[0].merged
    assert snapshot(model) == before


@pytest.mark.slow
def test_a_merge_of_peft_changes_bits():
    peft = library("peft")
    model = peft.get_peft_model(mlp(64, 64).bfloat16(), peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    W = model.get_submodule("base_model.model.0.base_layer").weight
    before = bits(W)
    model.merge_adapter()
    model.unmerge_adapter()
    assert bits(W) != before


def test_injected_layers_do_not_merge_when_the_mode_changes():
    model = injected(mlp(6, 5))
    model.eval()
    assert not model[0].merged
    lora.merge(model)
    assert model.train()[0].merged


def test_merge_for_good_gives_a_plain_model_with_the_same_output():
    model, x = injected(Encoder(), bias="all", modules_to_save=["norm"], target_modules=["query"]).eval(), torch.randn(4, 6)
    with torch.no_grad():
        model.norm.weight.fill_(3), model.proj.bias.fill_(2)
    y, plain = model(x), Encoder()
    lora.merge(model, keep=False)
    assert close(model(x), y, factor=64)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(model.modules(), plain.modules(), strict=True))


def test_merging_for_good_a_merged_model_changes_no_output():
    model, x = injected(mlp(6, 5)), torch.randn(4, 6)
    lora.merge(model)
    y = model(x)
    lora.merge(model, keep=False)
    assert same_bits(model(x), y)
    assert type(model[0]) is nn.Linear


def test_a_tied_embedding_is_untouched_by_merging_the_head():
    model, ids = injected(Tied(), target_modules=["head"]), torch.arange(5)
    E, before, y = model.embed.weight, bits(model.embed.weight), model(ids)
    lora.merge(model)
    assert close(model(ids), y, factor=64)
    assert model.embed.weight is E
    lora.unmerge(model)
    assert model.head.weight is E
    with pytest.warns(UserWarning, match=r"head.weight was tied to embed.weight, .*tie_word_embeddings = False") as record:
        lora.merge(model, keep=False)
    assert record[0].filename == __file__
    assert bits(E) == before
    assert close(model(ids), y, factor=64)


def test_one_layer_that_cannot_be_merged_keeps_all_unmerged():
    model = injected(mlp(6, 6, 6))
    nn.utils.parametrizations.weight_norm(model[2])
    for keep in (True, False):
        with pytest.raises(lora.LayerError, match=r"'2' cannot be merged.*Nothing was changed"):
            lora.merge(model, keep=keep)
        assert not model[0].merged


def test_merged_and_disabled_restore_the_state_they_found():
    model, x = injected(mlp(6, 5, 4)), torch.randn(3, 6)
    with lora.disabled(model):
        base = model(x)
    before, y = snapshot(model), model(x)
    with lora.merged(model) as inside:
        assert inside is model
        assert close(model(x), y, factor=32)
        with lora.disabled(model), lora.disabled(model):
            assert same_bits(model(x), base)
        assert model[0].merged
        with lora.merged(model):
            pass
        assert model[0].merged
    assert snapshot(model) == before
    assert not close(base, y, factor=1e4)


def test_merged_leaves_merged_what_was_merged():
    model = injected(mlp(6, 5, 4))
    model[0].merge()
    with lora.merged(model):
        assert model[2].merged
    assert [model[0].merged, model[2].merged] == [True, False]


@pytest.mark.parametrize("block", [lora.merged, lora.disabled])
def test_an_exception_inside_the_block_restores_the_model(block):
    model = trained_head()
    with block(model):
        pass
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), block(model):
        raise ZeroDivisionError
    assert snapshot(model) == before


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_is_set_inside_disabled_does_not_bring_the_update_back(training):
    model, x = nn.Sequential(randomize(lora.Linear(6, 5, r=2))).train(training), torch.randn(3, 6)
    base = nn.functional.linear(x, model[0].pristine_weight, model[0].bias)
    with lora.disabled(model):
        model.train(not training)
        assert same_bits(model(x), base)
    assert model[0].merged is training  # it is in evaluation now where it was in training, and the other way round
    assert model.train(training)[0].merged is not training
