"""The fused operations are taken where they can compute, and a forced one says why it cannot."""

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from loralib import ops
from loralib.ops import autograd
from loralib.ops.eligibility import ineligibility


def frozen_layer() -> tuple[nn.Module, Tensor]:
    """A linear layer with an update, and an input for it."""
    model = nn.Sequential(nn.Linear(6, 5)).requires_grad_(False)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
    return model[0], torch.randn(4, 6).requires_grad_()


class Counting:
    """How often the fused linear step was taken."""

    def __init__(self, monkeypatch):
        self.taken, inner = 0, autograd.lora_linear

        def counted(*args, **options):
            self.taken += 1
            return inner(*args, **options)

        monkeypatch.setattr(autograd, "lora_linear", counted)


def test_the_fused_step_is_taken_by_itself_and_the_reference_where_it_is_forced(monkeypatch):
    counting, (layer, x) = Counting(monkeypatch), frozen_layer()
    layer(x)
    assert counting.taken == 1
    with ops.use("reference"):
        layer(x)
    assert counting.taken == 1
    with ops.use("reference"), ops.use("autograd"):
        layer(x)
    assert counting.taken == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in forward mode
def test_torch_func_and_compilers_get_the_reference(monkeypatch):
    counting, (layer, x) = Counting(monkeypatch), frozen_layer()
    torch.func.vmap(layer)(x)
    torch.func.grad(lambda x: layer(x).sum())(x)
    torch.compile(layer, fullgraph=True, backend="eager")(x)
    torch.export.export(layer, (x.detach(),))
    with torch.autograd.forward_ad.dual_level():
        layer(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))
    assert counting.taken == 0


def test_a_forced_implementation_that_cannot_compute_says_why():
    layer, x = frozen_layer()
    with ops.use("autograd"), pytest.raises(lora.LayerError, match=r"'autograd' cannot be used here: torch\.func"):
        torch.func.vmap(layer)(x)
    with (
        pytest.raises(lora.ConfigError, match="'cuda' is not an implementation; choose one of reference, autograd"),
        ops.use("cuda"),
    ):
        pass


class Marked(Tensor):
    """A subclass of tensors."""


def test_plain_tensors_are_eligible_and_others_are_not():
    plain = torch.ones(2)
    assert ineligibility(plain, None, nn.Parameter(plain)) is None
    nested = torch.nested.nested_tensor([plain, torch.ones(3)], layout=torch.jagged)
    for other in (plain.as_subclass(Marked), nested):
        assert ineligibility(plain, other) == "not all tensors are plain ones"


def test_a_transformation_is_seen_inside_it_and_no_longer_after_it():
    found = []
    torch.func.vmap(lambda x: found.append(ineligibility(x)) or x)(torch.ones(3))
    with torch.autograd.forward_ad.dual_level():
        found.append(ineligibility(torch.ones(3)))
    assert all("transforms the computation" in str(problem) for problem in found)
    assert ineligibility(torch.ones(3)) is None


def test_what_does_not_go_together_is_named():
    layer, _ = frozen_layer()
    with pytest.raises(lora.LayerError, match=r"Linear.*the input has shape \(4, 7\), and lora_A \(2, 6\) takes 6 features"):
        layer(torch.randn(4, 7))
    with pytest.raises(lora.LayerError, match=r"the input is torch.float64 and the weight torch.float32"):
        layer(torch.randn(4, 6).double())
    layer.lora_A = nn.Parameter(layer.lora_A.detach().to("meta"))
    assert "not all on one device: the input on cpu, the weight on cpu, lora_A on meta" in layer.mismatch(torch.randn(4, 6))
