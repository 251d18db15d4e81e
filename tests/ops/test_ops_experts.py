"""Rows sorted by expert, times each expert's matrix with its update: one autograd node that equals the formula."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loralib.ops import experts
from loralib.ops.autograd import dropout

E, D, K = 4, 6, 5
ENDS = [2, 2, 7, 9]  # the second expert has no row


def drawn(
    shared: str = "", dtype: torch.dtype = torch.float64, rows: int = 9, r: int = 2, transposed: bool = False
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    first, last = (1 if "L" in shared else E), (1 if "R" in shared else E)
    x, W = torch.randn(rows, D), torch.randn(E, D, K)
    L, R = torch.randn(first, D, r), torch.randn(last, r, K)
    if transposed:
        L, R = (torch.randn(first, r, D).transpose(1, 2), torch.randn(last, K, r).transpose(1, 2))
    return {"x": x.to(dtype), "W": W.to(dtype), "L": L.to(dtype), "R": R.to(dtype)}


def dense(x: Tensor, W: Tensor, L: Tensor, R: Tensor, ends: list[int], s: float) -> Tensor:
    """The formula row by row."""
    rows, at = [], 0
    for i in range(len(x)):
        while at < len(ends) and i >= ends[at]:
            at += 1
        rows.append(x[i] @ (W[at] + s * L[at % len(L)] @ R[at % len(R)]) if at < len(ends) else torch.zeros(W.shape[2]).to(x))
    return torch.stack(rows)


@given(st.lists(st.integers(0, 4), min_size=E, max_size=E), st.sampled_from(["", "L", "R"]), st.booleans(), st.integers(0, 2))
def test_it_is_the_formula_whatever_rows_the_experts_have(
    counts: list[int], shared: str, transposed: bool, behind: int
) -> None:
    ends = [sum(counts[: i + 1]) for i in range(E)]
    parts = drawn(shared, rows=ends[-1] + behind, transposed=transposed)
    if not len(parts["x"]):
        return
    expected = dense(**parts, ends=ends, s=1.5)
    for compute in (experts.reference, experts.lora_experts):
        torch.testing.assert_close(compute(**parts, ends=ends, scaling=1.5), expected)


@pytest.mark.parametrize("shared", ["", "L", "R"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients_and_their_gradients_are_right(shared: str, p: float) -> None:
    parts = drawn(shared)
    leaves = [parts[name].requires_grad_() for name in ("x", "L", "R")]

    def compute(x: Tensor, L: Tensor, R: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same elements are dropped
        return experts.lora_experts(x, parts["W"], L, R, ENDS, 1.5, p)

    assert torch.autograd.gradcheck(compute, leaves)
    assert torch.autograd.gradgradcheck(compute, leaves)


@pytest.mark.parametrize("needs", [("x",), ("L",), ("R",), ("L", "R")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_is_needed_gets_a_gradient(needs: tuple[str, ...], dtype: torch.dtype) -> None:
    parts = drawn(dtype=dtype)
    for name in needs:
        parts[name].requires_grad_()
    experts.lora_experts(**parts, ends=ENDS, scaling=1.5).sum().backward()
    assert {name for name, tensor in parts.items() if tensor.grad is not None} == set(needs)
    exact = {name: tensor.detach().double().requires_grad_(name in needs) for name, tensor in parts.items()}
    experts.reference(**exact, ends=ENDS, scaling=1.5).sum().backward()
    for name in needs:
        found: Any = parts[name].grad
        tolerance = 16 * torch.finfo(dtype).eps * float(1 + exact[name].grad.abs().max())  # type: ignore[union-attr]
        assert (found.double() - exact[name].grad).abs().max() <= tolerance


def test_an_expert_without_rows_gets_a_gradient_of_zero() -> None:
    parts = drawn()
    L, R = parts["L"].requires_grad_(), parts["R"].requires_grad_()
    experts.lora_experts(**parts, ends=ENDS, scaling=1.0).sum().backward()
    assert L.grad is not None
    assert R.grad is not None
    assert [bool(L.grad[e].any()) for e in range(E)] == [bool(R.grad[e].any()) for e in range(E)] == [True, False, True, True]


def test_factors_in_float32_go_with_rows_in_bfloat16() -> None:
    parts = drawn(dtype=torch.bfloat16)
    parts |= {name: parts[name].float().requires_grad_() for name in ("L", "R")}
    y = experts.lora_experts(**parts, ends=ENDS, scaling=0.5)
    y.sum().backward()
    assert parts["L"].grad is not None
    assert (y.dtype, parts["L"].grad.dtype) == (torch.bfloat16, torch.float32)


def test_dropout_acts_on_the_update_alone() -> None:
    parts = drawn(dtype=torch.float64, rows=2000)
    ends, p = [500, 500, 1500, 2000], 0.25
    torch.manual_seed(3)
    y = experts.lora_experts(**parts, ends=ends, scaling=2.0, p=p)
    torch.manual_seed(3)
    _, places = dropout.draw(parts["x"], p)
    dropped = dropout.zeroed(parts["x"], places) / (1 - p)
    base = dense(parts["x"], parts["W"], parts["L"] * 0, parts["R"], ends, 1.0)
    update = dense(dropped, parts["W"] * 0, parts["L"], parts["R"], ends, 2.0)
    torch.testing.assert_close(y, base + update)
    assert not torch.equal(dropped, parts["x"])
