"""Updates of bilinear layers: each of the r components is a bilinear form of its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import loralib as lora
from kinds import DTYPES, Holder, adapted, agrees, expected
from models import expect_refusal, same_bits

SIZES = st.sampled_from([1, 3, 5, 17])


@pytest.mark.filterwarnings("ignore:.*larger than both sides")
@given(
    d1=SIZES,
    d2=SIZES,
    k=SIZES,
    r=st.integers(1, 4),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    leading=st.lists(st.integers(0, 3), max_size=3),
    use_rslora=st.booleans(),
    training=st.booleans(),
)
def test_forward_is_the_base_operation_with_the_effective_weight(d1, d2, k, r, bias, dtype, leading, use_rslora, training):
    layer = nn.Bilinear(d1, d2, k, bias=bias).to(dtype).train(training)
    plain, model = adapted(layer, dtype, r=r, use_rslora=use_rslora)
    x = torch.randn(*leading, d1).to(dtype), torch.randn(*leading, d2).to(dtype)
    reference = expected(plain, model, x)
    y = model(*x)
    assert y.dtype == dtype
    assert agrees(y, reference, dtype, d1 * d2 * r)
    lora.merge(model)
    assert agrees(model(*x), reference, dtype, d1 * d2 * r)
    assert same_bits(model(*x), F.bilinear(*x, model.layer.effective_weight(model.layer.pristine_weight), layer.bias))


def test_the_update_has_the_rank_asked_for():
    update = lora.extract(adapted(nn.Bilinear(5, 6, 7).double(), r=2)[1]).layers["layer"]
    assert update.A.shape == (2, 5, 6)
    assert update.B.shape == (7, 2)
    assert update.delta().shape == (7, 5, 6)
    assert torch.linalg.matrix_rank(update.delta().flatten(1)) == 2


def test_the_inputs_may_be_passed_by_the_names_that_nn_bilinear_gives_them():
    model = adapted(nn.Bilinear(3, 4, 5))[1]
    a, b = torch.randn(2, 3), torch.randn(2, 4)
    assert same_bits(model(input2=b, input1=a), model(a, b))


def test_dropout_acts_on_the_first_input_of_the_update():
    p, n = 0.3, 20_000
    model = adapted(nn.Bilinear(n, 1, 1, bias=False), r=1, lora_alpha=1, lora_dropout=p)[1]
    with torch.no_grad():
        model.layer.weight.zero_(), model.layer.lora_A.fill_(1), model.layer.lora_B.fill_(1)
    x, one = torch.ones(1, n, requires_grad=True), torch.ones(1, 1)
    (kept,) = torch.autograd.grad(model(x, one).sum(), x)
    assert torch.equal(kept.unique(), torch.tensor([0.0, 1 / (1 - p)]))
    assert abs(float((kept == 0).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert torch.equal(model.eval()(x, one), torch.full((1, 1), float(n)))


def test_a_subclass_with_other_argument_names_is_adapted():
    class Named(nn.Bilinear):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(left, right)

    plain, model = adapted(Named(3, 4, 5))
    x = torch.randn(2, 3), torch.randn(2, 4)
    y = model(*x)
    assert agrees(y, expected(plain, model, x), torch.float32, 24)
    assert same_bits(model(left=x[0], right=x[1]), y)
    with lora.merged(model):
        assert agrees(model(*x), y.double(), torch.float32, 24)


def test_all_linear_does_not_take_bilinear_layers():
    model = nn.ModuleDict({"both": nn.Bilinear(3, 4, 5), "one": nn.Linear(5, 2)})
    assert lora.inject(model, lora.LoRAConfig(r=2)) == ["one"]


@pytest.mark.parametrize("sizes", [(3, 4, 6), (4, 4, 5), (4, 3, 5)])
def test_an_adapter_of_another_shape_does_not_fit(sizes):
    adapter = lora.extract(adapted(nn.Bilinear(3, 4, 5))[1])
    for model in (Holder(nn.Bilinear(*sizes)), adapted(nn.Bilinear(*sizes))[1]):
        message = r"layer: lora_[AB] \(.*\) in the adapter, \(.*\) in the model"
        expect_refusal(lora.AttachError, message, model, lambda m=model: lora.attach(m, adapter))


def test_the_adapter_of_a_linear_layer_does_not_fit():
    adapter = lora.extract(adapted(nn.Linear(3, 5))[1])
    model = Holder(nn.Bilinear(3, 1, 5))
    expect_refusal(lora.AttachError, r"layer: lora_A \(2, 3\) in the adapter", model, lambda: lora.attach(model, adapter))
