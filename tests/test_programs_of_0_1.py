"""What programs written for loralib 0.1 do goes on working: each test runs on 0.1.2 as well, which proves that it did."""

import copy
import inspect
import json
import pickle
from collections.abc import Iterable
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import loralib as lora
from models import close, same_bits
from peers import loralib_0_1

LAYERS = {
    "Linear": ((5, 4), {}, (3, 5)),
    "MergedLinear": ((5, 6), {"enable_lora": [True, False]}, (3, 5)),
    "Embedding": ((7, 4), {}, (3, 2)),
    "Conv2d": ((4, 6, 3), {"padding": 1}, (2, 4, 5, 5)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
both = pytest.mark.parametrize("module", [loralib_0_1, lambda: lora], ids=["0.1.2", "ours"])


def build(module: ModuleType, name: str, **options: object) -> tuple[nn.Module, torch.Tensor]:
    """A layer with random factors, and an input for it; the same numbers for both libraries."""
    sizes, own, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = getattr(module, name)(*sizes, **{"r": 2, "lora_alpha": 3} | own | options)
    with torch.no_grad():
        for factor in (layer.lora_A, layer.lora_B):
            factor.copy_(torch.randn(factor.shape))
    return layer, torch.randint(7, shape) if name == "Embedding" else torch.randn(shape)


# --- dropout, and what is a module ----------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@both
@every_layer
def test_a_layer_without_dropout_is_a_leaf(module, name):
    layer = build(module(), name)[0]
    expected = [nn.Conv2d] if (name, module()) == ("Conv2d", loralib_0_1()) else [type(layer)]
    assert [type(m) for m in layer.modules() if not list(m.children())] == expected
    assert "lora_dropout" not in repr(layer)
    x = torch.randn(3)
    assert layer.lora_dropout(x) is x


@both
@pytest.mark.parametrize("name", ["Linear", "MergedLinear"])
@pytest.mark.parametrize("double", [lambda x: 2 * x, Double()], ids=["function", "module"])
def test_a_function_or_a_module_may_be_assigned_as_dropout(module, name, double):
    layer, x = build(module(), name, merge_weights=False)
    base, whole = nn.functional.linear(x, layer.weight, layer.bias), layer(x)
    layer.lora_dropout = double
    assert close(layer(x) - base, 2 * (whole - base), factor=64)


# --- empty dimensions -----------------------------------------------------------------------------------------------

EMPTY = [
    ("Linear", (0, 4), (3, 0)),
    ("Linear", (4, 0), (3, 4)),
    ("Linear", (0, 0), (3, 0)),
    ("Embedding", (0, 4), (0,)),
    ("Embedding", (4, 0), (3,)),
    ("Conv2d", (0, 4, 3), (2, 0, 5, 5)),
    ("Conv1d", (0, 4, 1), (2, 0, 5)),
]
no_elements = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


@no_elements
@both
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("name", "sizes", "shape"), EMPTY)
def test_a_layer_with_an_empty_dimension_has_factors_and_a_frozen_weight(module, name, sizes, shape, transposed):
    options = {"fan_in_fan_out": transposed} if name == "Linear" else {}
    layer = getattr(module(), name)(*sizes, r=2, lora_alpha=3, **options)
    kappa = sizes[2] if "Conv" in name else 1
    assert layer.lora_A.shape == (2 * kappa, sizes[0] * kappa)
    assert layer.lora_B.shape == (sizes[1] * kappa, 2 * kappa)
    assert [n for n, p in layer.named_parameters() if not p.requires_grad] in (["weight"], ["conv.weight"])
    x = torch.randint(4, shape) if name == "Embedding" else torch.ones(shape)
    y = copy.deepcopy(layer)(x)
    y.sum().backward()
    for mode in (False, True):
        layer.train(mode)
        assert layer(x).shape == y.shape
        assert not y.numel() or close(layer(x), y)


@no_elements
@pytest.mark.parametrize(
    ("name", "sizes", "shape"), [*EMPTY, ("MergedLinear", (0, 6), (3, 0)), ("MergedLinear", (4, 0), (3, 4))]
)
def test_the_update_of_an_empty_weight_is_merged_and_ejected(name, sizes, shape):
    own = {"enable_lora": [True, False]} if name == "MergedLinear" else {}
    model = nn.Sequential(getattr(lora, name)(*sizes, r=2, lora_alpha=3, **own))
    x = torch.randint(4, shape) if name == "Embedding" else torch.ones(shape)
    y = model(x)
    with lora.merged(model):
        assert model(x).shape == y.shape
    assert sorted(lora.lora_state_dict(model)) == ["0.lora_A", "0.lora_B"]
    update = model[0].update
    lora.merge(model)
    lora.unmerge(model)
    assert same_bits(lora.eject(model) or model(x), y)
    if "Conv" in name:  # to which torch gives an output without channels
        return
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
    assert update.r == model[0].update.r == 2
    assert same_bits(model(x), y)


# --- transposed convolutions ----------------------------------------------------------------------------------------

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@both
@pytest.mark.parametrize(("n", "kernel", "groups"), [(1, 1, 1), (2, 3, 1), (2, 3, 2), (2, 1, 2), (3, 1, 1)])
def test_a_transposed_convolution_with_a_forward_of_its_own(module, n, kernel, groups):
    conv_class = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[n]

    class Up(module().ConvLoRA):
        def __init__(self, *args, **kwargs):
            super().__init__(conv_class, *args, **kwargs)

        def forward(self, x):
            W = self.conv.weight
            if self.r > 0 and not self.merged:
                W = W + (self.lora_B @ self.lora_A).view(W.shape) * self.scaling
            conv = self.conv
            return TRANSPOSED[n](x, W, conv.bias, conv.stride, conv.padding, conv.output_padding, conv.groups)

    layer = Up(4, 6, kernel, r=2, lora_alpha=3, stride=2, output_padding=1, groups=groups)
    assert layer.lora_A.shape == (2 * kernel, 4 * kernel)
    assert layer.lora_B.shape == (6 // groups * kernel, 2 * kernel)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 4, *[5] * n)
    y = layer(x)
    layer.eval()
    assert layer.merged
    assert close(layer(x), y, factor=64)
    assert close(layer.conv(x), y, factor=64)
    layer.train()
    assert close(layer(x), y, factor=64)
    assert close(copy.deepcopy(layer.conv)(x), layer.conv(x), factor=64)


# --- numbers and truth values of numpy and torch --------------------------------------------------------------------

MASKS = {
    "list of numpy's": lambda: list(np.array([True, False, True])),
    "numpy array": lambda: np.array([True, False, True]),
    "tensor": lambda: torch.tensor([True, False, True]),
    "tuple": lambda: (True, False, True),
}


@both
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_may_be_of_numpys_truth_values(module, mask):
    layer = module().MergedLinear(6, 9, r=np.int64(2), lora_alpha=np.float64(3), enable_lora=MASKS[mask]())
    assert (layer.lora_A.shape, layer.lora_B.shape, layer.scaling) == ((4, 6), (6, 2), 1.5)
    assert list(layer.enable_lora) == [True, False, True]
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 6)
    changed = (layer(x) - F.linear(x, layer.weight, layer.bias)).abs().sum(0) > 0
    assert changed.tolist() == [True] * 3 + [False] * 3 + [True] * 3


@pytest.mark.parametrize("of", [np.int64, np.int32, torch.tensor, np.array])
def test_a_configuration_of_numpys_numbers_is_one_of_pythons(of, tmp_path):
    true = of(1) == 1
    given = lora.LoRAConfig(
        r=of(2),
        lora_alpha=of(4),
        rank_pattern={"0": of(3)},
        alpha_pattern={"0": of(5)},
        use_rslora=true,
        enable_lora={"0": [true, ~true]},
        slice_widths={"0": [of(2), of(4)]},
    )
    plain = lora.LoRAConfig(
        r=2,
        lora_alpha=4,
        rank_pattern={"0": 3},
        alpha_pattern={"0": 5},
        use_rslora=True,
        enable_lora={"0": [True, False]},
        slice_widths={"0": [2, 4]},
    )
    assert given == plain
    assert json.loads(json.dumps(given.to_dict())) == plain.to_dict()
    assert lora.LoRAConfig(enable_lora=MASKS["numpy array"]()) == lora.LoRAConfig(enable_lora=[True, False, True])
    model = nn.Sequential(nn.Linear(5, 6))
    lora.inject(model, given)
    adapter = lora.extract(model)
    lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
    assert lora.load(tmp_path / "a.safetensors") == adapter
    assert (adapter * of(2)).layers == (adapter * 2).layers
    assert lora.combine([adapter, adapter], weights=[of(2), of(1)]).layers == (2 * adapter + adapter).layers


def test_layers_with_sizes_of_numpys_numbers_give_an_adapter_that_files_can_hold(tmp_path):
    i, f = np.int64, np.float32
    model = nn.ModuleDict(
        {
            "fused": lora.MergedLinear(i(6), i(9), r=i(2), enable_lora=np.array([True, False, True])),
            "scaled": lora.Linear(i(6), i(4), r=i(2), lora_alpha=f(4)),
            "legacy": lora.Conv2d(i(4), i(6), i(3), r=i(2), groups=i(2)),
            "conv": nn.ConvTranspose2d(i(4), i(6), i(3), groups=i(2)),
            "slices": nn.Linear(i(6), i(9)),
            "embedding": nn.Embedding(i(7), i(4), max_norm=f(1)),
        }
    )
    targets = ["conv", "slices", "embedding"]
    lora.inject(model, lora.LoRAConfig(r=i(2), target_modules=targets, enable_lora={"slices": np.array([True, False, True])}))
    update = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), lora_alpha=f(4))
    for adapter in (lora.extract(model), lora.Adapter(lora.LoRAConfig(), {"x": update})):
        lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
        loaded = lora.load(tmp_path / "a.safetensors")
        assert loaded == adapter
        assert loaded.digest() == adapter.digest()


@pytest.mark.parametrize(
    "mask", [[1, 0, 1], [True, None, False], np.array([1, 0, 1]), torch.tensor([1.0, 0.0, 1.0]), "yes", None]
)
def test_a_mask_of_anything_else_is_refused(mask):
    with pytest.raises(lora.ConfigError, match="enable_lora"):
        lora.MergedLinear(6, 9, r=2, enable_lora=mask)


# --- what MergedLinear is made of -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mask", [[True, False, True], [False, True], [True], [True, True, True]])
def test_merge_ab_zero_pad_and_lora_ind(module, mask, transposed):
    layer = module().MergedLinear(4, 6, r=2, lora_alpha=3, enable_lora=mask, fan_in_fan_out=transposed)
    nn.init.normal_(layer.lora_B)
    width = 6 // len(mask)
    assert layer.lora_ind.tolist() == [on for on in mask for _ in range(width)]
    dense, parts = [], list(zip(layer.lora_A.split(2), layer.lora_B.split(width), strict=True))
    for on in mask:
        A, B = parts.pop(0) if on else (torch.zeros(2, 4), torch.zeros(width, 2))
        dense.append(B @ A)
    expected = torch.cat(dense)
    assert close(layer.merge_AB(), expected.t() if transposed else expected, factor=64)
    x = torch.randn(sum(mask) * width, 3)
    padded = layer.zero_pad(x)
    assert torch.equal(padded[layer.lora_ind], x)
    assert not padded[~layer.lora_ind].any()
    layer.merge_AB().sum().backward()
    assert layer.lora_A.grad.abs().sum() > 0
    before = layer.weight.detach().clone()
    layer.eval()
    assert close(layer.weight, before + 1.5 * layer.merge_AB(), factor=64)
    layer.lora_ind = layer.lora_ind.clone()  # as programs do that move it to the weight's device


def test_lora_ind_is_where_the_weight_is_and_says_what_enable_lora_says():
    layer = lora.MergedLinear(4, 6, r=2, enable_lora=[True, False], device="meta")
    assert layer.lora_ind.is_meta
    layer = lora.MergedLinear(4, 6, r=2, enable_lora=[True, False])
    with pytest.raises(lora.ConfigError, match="lora_ind follows from enable_lora"):
        layer.lora_ind = ~layer.lora_ind
    assert list(copy.deepcopy(layer).state_dict()) == ["weight", "bias", "lora_A", "lora_B"]


@both
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("hook", ["merge_AB", "zero_pad"])
def test_a_subclass_may_have_a_merge_ab_or_zero_pad_of_its_own(module, hook, transposed):
    base = module().MergedLinear
    doubled = type("Doubled", (base,), {hook: lambda self, *args: 2 * getattr(base, hook)(self, *args)})
    layer = doubled(4, 6, r=2, enable_lora=[True, False], fan_in_fan_out=transposed)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 4)
    W = layer.weight.t() if transposed else layer.weight
    y = layer(x)
    product = torch.cat([layer.lora_B @ layer.lora_A, torch.zeros(3, 4)])
    assert close(y, F.linear(x, W, layer.bias) + 2 * F.linear(x, product) * layer.scaling, factor=64)
    layer.eval()
    assert close(layer(x), y, factor=64)
    if module() is lora:
        with pytest.raises(lora.LayerError, match="Doubled has a merge_AB of its own"):
            lora.extract(nn.Sequential(layer))


# --- signatures and torch.fx ----------------------------------------------------------------------------------------


@both
@every_layer
def test_the_input_is_called_x_in_the_signature(module, name):
    layer, x = build(module(), name, merge_weights=False)
    assert list(inspect.signature(layer.forward).parameters) == ["x"]
    assert same_bits(layer.forward(x=x), layer(x))


@both
@every_layer
@pytest.mark.parametrize("mode", [True, False])
def test_torch_fx_traces_a_layer_by_itself(module, name, mode):
    if mode and (module(), name) == (loralib_0_1(), "MergedLinear"):
        return  # which iterates over a shape that it traces
    layer, x = build(module(), name)
    layer.train(mode)
    graph = torch.fx.symbolic_trace(layer)
    assert type(graph).__name__ == type(layer).__name__
    assert close(graph(x), layer(x), factor=64)
    if mode:
        graph(x).sum().backward()
        assert layer.lora_B.grad is not None or graph.lora_B.grad is not None


# --- the state of an optimizer goes by the order of parameters ------------------------------------------------------


def renamed(names: Iterable[str]) -> list[str]:
    return [name.replace("conv.", "") for name in names]


def several(module: ModuleType) -> nn.Module:
    """A model of all kinds of layers, with the same numbers in both libraries."""
    torch.manual_seed(0)
    layers = [getattr(module, name)(*sizes, r=2, lora_alpha=3, **own) for name, (sizes, own, _) in LAYERS.items()]
    return nn.ModuleList(
        [*layers, module.Conv1d(4, 6, 1, r=2), module.Conv2d(2, 3, 3), module.Conv3d(2, 3, 1, bias=False, r=2)]
    )


def test_parameters_have_the_order_of_0_1():
    ours, theirs = several(lora), several(loralib_0_1())
    names = renamed(name for name, _ in theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == names
    assert list(ours.state_dict()) == renamed(theirs.state_dict())
    for model in (ours.eval(), ours.train(), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_state_of_an_adam_of_0_1_goes_on_in_ours(bias):
    state, results = None, []
    for module in (loralib_0_1(), lora):
        model = several(module)
        module.mark_only_lora_as_trainable(model, bias=bias)
        adam = torch.optim.Adam(model.parameters(), lr=0.1)
        if state is None:
            descend(model, adam, steps=3)
            state, tensors = copy.deepcopy(adam.state_dict()), {n: t.clone() for n, t in model.state_dict().items()}
        else:
            adam.load_state_dict(state)
            model.load_state_dict(tensors)
        descend(model, adam, steps=2)
        results.append(dict(zip(renamed(model.state_dict()), model.state_dict().values(), strict=True)))
    theirs, ours = results
    assert all(close(ours[name], theirs[name], factor=512) for name in theirs)


def descend(model: nn.Module, adam: torch.optim.Optimizer, steps: int) -> None:
    """Steps of a loss that is a plain function of the trained tensors, so that both libraries have the same gradients."""
    for _ in range(steps):
        adam.zero_grad()
        trained = [(renamed([name])[0], p) for name, p in model.named_parameters() if p.requires_grad]
        sum((1 + len(name) % 3) * p.sin().sum() for name, p in trained).backward()
        adam.step()


# --- a seed gives the same numbers ----------------------------------------------------------------------------------

DRAWS = {
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "normal_": lambda layer: nn.init.normal_(layer.weight, std=0.02),
    "data.normal_": lambda layer: layer.weight.data.normal_(std=0.02),
    "uniform_": lambda layer: nn.init.uniform_(layer.weight),
    "kaiming_uniform_": lambda layer: nn.init.kaiming_uniform_(layer.weight, a=1),
    "xavier_normal_": lambda layer: nn.init.xavier_normal_(layer.weight),
    "orthogonal_": lambda layer: nn.init.orthogonal_(layer.weight),
    "a copy, reset": lambda layer: copy.deepcopy(layer).reset_parameters(),
    "double, reset": lambda layer: layer.double().reset_parameters(),
    "in evaluation mode": lambda layer: (layer.eval(), layer.train(), layer.reset_parameters()),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["Linear", "MergedLinear"])
def test_a_seed_draws_the_numbers_of_0_1_in_the_place_of_a_weight(name, transposed, draw):
    drawn = []
    for module in (loralib_0_1(), lora):
        torch.manual_seed(3)
        own = {"enable_lora": [True, False]} if name == "MergedLinear" else {}
        layer = getattr(module, name)(20, 30, r=2, fan_in_fan_out=transposed, **own)
        DRAWS[draw](layer)
        drawn.append([*layer.state_dict().values(), torch.rand(1)])
    assert all(same_bits(a, b) for a, b in zip(*drawn, strict=True))


# --- what UPGRADING.md says of eval() -------------------------------------------------------------------------------


class TiedHead(nn.Module):
    def __init__(self, module: ModuleType):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, 5), module.Linear(5, 7, r=2, bias=False)
        nn.init.normal_(self.head.lora_B)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids))


@both
def test_eval_of_a_tied_head_leaves_the_embedding_alone_here_and_changed_it_in_0_1(module):
    model, ids = TiedHead(module()), torch.arange(7)
    y, before = model(ids), model.embedding.weight.detach().clone()
    model.eval()
    is_right = module() is lora
    assert torch.equal(model.embedding.weight, before) is is_right
    assert close(model(ids), y, factor=64) is is_right
    model.train()
    assert model.head.weight is model.embedding.weight
    assert close(model(ids), y, factor=64)


COMPUTED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": nn.utils.weight_norm,
    "parametrized": parametrizations.weight_norm,
}


@both
@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")
def test_eval_of_a_layer_whose_weight_is_computed_loses_no_update(module, how):
    layer, x = build(module(), "Linear", merge_weights=module() is not lora)
    COMPUTED[how](layer)
    y = layer(x)
    layer.eval()
    assert close(layer(x), y, factor=64) is (module() is lora)
    layer.train()
    assert close(layer(x), y, factor=64)


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")
def test_a_layer_whose_weight_is_computed_does_not_merge_in_silence(how):
    layer, x = build(lora, "Linear")
    COMPUTED[how](layer)
    y = layer(x)
    with pytest.raises(lora.LayerError, match="remove that first"):
        layer.eval()
    assert same_bits(layer(x), y)


@both
@every_layer
def test_what_is_exported_in_evaluation_mode_has_the_update(module, name):
    layer, x = build(module(), name)
    y = layer(x)
    layer.eval()
    assert close(torch.export.export(layer, (x,)).module()(x), y, factor=64)
