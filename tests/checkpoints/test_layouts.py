"""Where layers' weights are, and how they are stored: modules and files say the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import loralib as lora
from hf import tiny
from kinds import KINDS, every_kind
from loralib.adapters.layout import Layout
from loralib.checkpoints.layouts import Located, by_modules, by_names, by_updates, is_conv1d, tensor_of
from loralib.surgery.survey import Survey
from peers import library
from sample_adapters import updates


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_modules_and_names_agree_about_attention():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "other": nn.MultiheadAttention(4, 2, kdim=3)})
    found = dict(by_modules(Survey(model)))
    assert found == dict(by_names(shapes_of(model), {}))
    assert found["attn.v_proj"] == Located("attn.in_proj_weight", Layout(start=8, rows=4), lora.ProjectionUpdate)
    assert found["other.k_proj"] == Located("other.k_proj_weight", kind=lora.ProjectionUpdate)
    assert found["other.out_proj"] == Located("other.out_proj.weight", kind=lora.ProjectionUpdate)


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta"])
def test_modules_and_names_agree_about_models(family):
    model = tiny(family)
    assert dict(by_modules(Survey(model))) == dict(by_names(shapes_of(model), {}))


def test_modules_and_names_agree_about_gpt2():
    t = library("transformers")
    model = t.GPT2Model(t.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=17, n_positions=8))
    found = dict(by_names(shapes_of(model), {"model_type": "gpt2"}))
    assert found == dict(by_modules(Survey(model)))
    assert found["h.0.attn.c_attn"].layout == Layout(transposed=True)
    assert found["wte"].kind is lora.EmbeddingUpdate


@pytest.mark.parametrize("kind", [kind for kind in every_kind if kind != "transposed conv2d of 0.1"])  # has a layout of its own
def test_an_update_and_its_module_agree(kind):
    """Files know less than modules, but an update says of which kind its weight is."""
    plain, model = KINDS[kind].build()
    adapter, shapes = lora.extract(model), shapes_of(plain)
    tensors = {name: tensor_of(name, update, shapes) for name, update in adapter.layers.items()}
    located, problems = by_updates(adapter.layers, tensors, shapes, adapter.config.fan_in_fan_out, {})
    expected = dict(by_modules(Survey(plain)))
    assert not problems
    assert {name: (w.tensor, w.layout) for name, w in located.items()} == {
        name: (expected[name].tensor, expected[name].layout) for name in adapter.layers
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data(), transposed=st.booleans())
def test_an_update_fits_the_weight_of_its_own_shape_and_no_other(data, transposed):
    update = data.draw(updates())
    linear = type(update) in (lora.LoRAUpdate, lora.FusedUpdate) and update.A.dim() == 2
    layout = Layout(transposed=transposed and linear) if linear else update.usual_layout
    if isinstance(update, lora.ConvolutionUpdate) and update.transposed:
        layout = Layout(deconvolution=update.groups)
    shape = layout.stored_shape(update.canonical_shape)
    shapes = {"layer.weight": shape}
    located, problems = by_updates({"layer": update}, {"layer": "layer.weight"}, shapes, transposed, {})
    assert not problems
    assert located["layer"].layout.stored_shape(update.canonical_shape) == shape
    wrong = {"layer.weight": (shape[0] + 1, *shape[1:])}
    _, problems = by_updates({"layer": update}, {"layer": "layer.weight"}, wrong, transposed, {})
    assert f"for a weight of {wrong['layer.weight']}" in problems["layer"]


def square(name: str) -> dict[str, lora.LoRAUpdate]:
    return {name: lora.LoRAUpdate(torch.ones(1, 4), torch.ones(4, 1), 1)}


@pytest.mark.parametrize(
    ("fan_in_fan_out", "config", "others", "expected"),
    [
        (False, {}, {}, False),
        (True, {}, {}, True),
        (False, {"model_type": "gpt2"}, {}, True),
        (True, {"model_type": "gpt2"}, {}, True),
        (False, {"model_type": "llama"}, {}, False),
        (False, {}, {"b.c_proj": (3, 4)}, True),  # a layer of the same name that is not square
        (False, {}, {"b.c_proj": (4, 3)}, False),
    ],
)
def test_a_square_weight_is_stored_as_everything_else_says(fan_in_fan_out, config, others, expected):
    layers = square("a.c_proj") | {name: lora.LoRAUpdate(torch.ones(1, 3), torch.ones(4, 1), 1) for name in others}
    shapes = {"a.c_proj.weight": (4, 4)} | {f"{name}.weight": shape for name, shape in others.items()}
    tensors = {name: f"{name}.weight" for name in layers}
    located, problems = by_updates(layers, tensors, shapes, fan_in_fan_out, config)
    assert not problems
    assert located["a.c_proj"].layout == Layout(transposed=expected)


def test_a_square_weight_of_which_nothing_is_known_is_a_problem():
    layers = square("a.query") | {"b.key": lora.LoRAUpdate(torch.ones(1, 3), torch.ones(4, 1), 1)}
    shapes = {"a.query.weight": (4, 4), "b.key.weight": (3, 4)}
    _, problems = by_updates(layers, {name: f"{name}.weight" for name in layers}, shapes, False, {})
    assert list(problems) == ["a.query"]
    assert "square" in problems["a.query"]


def test_the_third_of_a_packed_weight_has_to_fit():
    update = lora.ProjectionUpdate(torch.ones(1, 4), torch.ones(4, 1), 1)
    for shape, fits in (((12, 4), True), ((8, 4), False), ((12, 5), False)):
        shapes = {"attn.in_proj_weight": shape}
        tensor = tensor_of("attn.q_proj", update, shapes)
        _, problems = by_updates({"attn.q_proj": update}, {"attn.q_proj": tensor}, shapes, False, {})
        assert bool(problems) != fits


def test_a_tensor_is_found_by_the_kind_of_update():
    linear, projection = (kind(torch.ones(1, 4), torch.ones(4, 1), 1) for kind in (lora.LoRAUpdate, lora.ProjectionUpdate))
    held = {"attn.in_proj_weight": (12, 4), "x.q_proj_weight": (4, 4), "y.q_proj.weight": (4, 4)}
    assert tensor_of("attn.q_proj", projection, held) == "attn.in_proj_weight"
    assert tensor_of("x.q_proj", projection, held) == "x.q_proj_weight"
    assert tensor_of("y.q_proj", linear, held) == "y.q_proj.weight"
    assert not tensor_of("attn.q_proj", linear, held)
    assert not tensor_of("y.q_proj", projection, held)


def test_only_models_with_conv1d_have_it():
    assert is_conv1d("transformer.h.0.mlp.c_fc", {"model_type": "gpt2"})
    assert not is_conv1d("lm_head", {"model_type": "gpt2"})
    assert not is_conv1d("h.0.mlp.c_fc", {})
