"""The weights that an adapter changes, the same from a model and from its files."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import loralib as lora
from kinds import KINDS, every_kind
from loralib.adapters.config_of import described
from loralib.checkpoints.base_weights import locate, pairs, weights_of
from models import Tied, mlp, same_bits
from sample_adapters import tensor, updates


def saved(model: nn.Module, path):
    save_file({name: t.clone() for name, t in model.state_dict().items()}, path)
    return path


def adapter_of(**layers: lora.LoRAUpdate) -> lora.Adapter:
    return lora.Adapter(described(lora.LoRAConfig(), layers), layers)


@pytest.mark.parametrize("kind", every_kind)
def test_pairs_of_a_model_are_those_of_its_files(kind, tmp_path):
    plain, model = KINDS[kind].build()
    adapter = lora.extract(model)
    of_model, of_files = list(pairs(adapter, plain)), list(pairs(adapter, saved(plain, tmp_path / "m.safetensors")))
    assert [pair.layer for pair in of_model] == [pair.layer for pair in of_files] == list(adapter.layers)
    for a, b in zip(of_model, of_files, strict=True):
        assert a.update is b.update is adapter.layers[a.layer]
        assert same_bits(a.W, b.W)
        assert tuple(a.W.shape) == a.update.canonical_shape


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_pair_has_the_canonical_weight(data, tmp_path_factory):
    update = data.draw(updates(["linear", "embedding", "conv", "transposed", "merged", "bilinear"]))
    transposed = isinstance(update, lora.ConvolutionUpdate) and update.transposed
    canonical = tensor(update.canonical_shape, torch.float32, 5)
    stored = canonical.transpose(0, 1) if transposed or isinstance(update, lora.EmbeddingUpdate) else canonical
    path = tmp_path_factory.mktemp("pairs") / "m.safetensors"
    save_file({"layer.weight": stored.contiguous()}, path)
    [pair] = pairs(adapter_of(layer=update), path)
    assert same_bits(pair.W.contiguous(), canonical)


def test_tied_weights_are_one_tensor_of_two_layers():
    weights = weights_of(Tied())
    assert [weights.layers[name].tensor for name in ("embed", "head")] == ["embed.weight", "embed.weight"]
    assert "head.weight" not in weights.shapes
    adapter = adapter_of(head=lora.LoRAUpdate(torch.ones(1, 6), torch.ones(11, 1), 1))
    assert locate(adapter, Tied())["head"].tensor == "embed.weight"


def test_a_models_weights_are_not_copied():
    model = mlp(3, 4)
    weights = weights_of(model)
    assert weights.tensor("0.weight").data_ptr() == model[0].weight.data_ptr()
    assert not weights.tensor("0.weight").requires_grad
    assert weights.what == "Sequential"


def test_layers_that_are_not_there_are_refused(tmp_path):
    adapter = adapter_of(x=lora.LoRAUpdate(torch.ones(1, 3), torch.ones(4, 1), 1))
    with pytest.raises(lora.LayerError, match="no layer 'x'"):
        locate(adapter, mlp(3, 4))
    with pytest.raises(lora.FormatError, match="lacks 1 of the 1 layers"):
        locate(adapter, saved(mlp(3, 4), tmp_path / "m.safetensors"))


def test_weights_of_another_shape_are_refused(tmp_path):
    adapter = adapter_of(**{"0": lora.LoRAUpdate(torch.ones(1, 3), torch.ones(5, 1), 1)})
    with pytest.raises(lora.LayerError, match="does not fit"):
        list(pairs(adapter, mlp(3, 4)))
    with pytest.raises(lora.FormatError, match=r"\(5, 3\) for a weight of \(4, 3\)"):
        list(pairs(adapter, saved(mlp(3, 4), tmp_path / "m.safetensors")))


def test_everything_that_does_not_fit_is_listed_but_not_without_end(tmp_path):
    model = mlp(*[3] * 12)
    adapter = adapter_of(**{f"{2 * i}": lora.LoRAUpdate(torch.ones(1, 3), torch.ones(5, 1), 1) for i in range(11)})
    with pytest.raises(lora.FormatError, match=r"0: an update.*; and 3 more\. Nothing"):
        locate(adapter, saved(model, tmp_path / "m.safetensors"))


def test_a_model_that_carries_updates_is_refused():
    model = copy.deepcopy(mlp(3, 4))
    lora.inject(model, lora.LoRAConfig(r=1))
    with pytest.raises(lora.LayerError, match="'0' carries an update"):
        weights_of(model)
