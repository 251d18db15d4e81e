"""Amplification: planted values come out, every kind of layer agrees with a dense reference, and large weights nearly do."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import planted
import pytest
import torch
from hypothesis import given
from planted import F64, SIZES, adapter, drawn
from torch import Tensor, nn

import loralib as lora
from kinds import THREE, adapted, fill, hf_conv1d
from loralib.adapters import low_rank
from loralib.analysis import Amplification, amplification
from loralib.analysis.amplification import SHARES


def base(W: Tensor, name: str = "q") -> nn.Module:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    layer.weight.data = W
    return nn.ModuleDict({name: layer})


def planted_case(k: int, n: int, chosen: list[int], seed: int = 0) -> tuple[lora.LoRAUpdate, Tensor, Tensor]:
    """An update along the `chosen` singular directions of a weight; W, and its singular values."""
    m = min(k, n)
    U, V, T = planted.orthonormal(k, m, seed), planted.orthonormal(n, m, seed + 1), torch.linspace(9, 1, m, dtype=F64)
    S = planted.apart(len(chosen), seed)
    return planted.update(U[:, chosen], S, V[:, chosen]), U * T @ V.t(), T


# --- planted values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(30, 40), (40, 30), (20, 20)])
def test_directions_that_were_planted_come_out(k: int, n: int) -> None:
    chosen = [0, 7, 12]
    update, W, T = planted_case(k, n, chosen)
    S = planted.apart(3, 0)
    for r in (1, 2, 3):
        found = amplification(adapter(q=update), base(W), r)["q"]
        assert found.r == r
        assert found.by_update == pytest.approx(float(T[chosen[:r]].norm()), rel=1e-10)
        assert found.by_weight == pytest.approx(float(T[:r].norm()), rel=1e-10)
        assert found.weight_norm == pytest.approx(float(T.norm()), rel=1e-10)
        assert found.update_norm == pytest.approx(float(S.norm()), rel=1e-10)
        assert found.by_random == pytest.approx(float(T.norm()) * r / math.sqrt(k * n), rel=1e-10)
        assert found.factor == pytest.approx(float(S.norm() / T[chosen[:r]].norm()), rel=1e-10)
        for share, overlap in found.overlap.items():
            count = max(1, round(share * min(k, n)))
            inside = torch.tensor([i < count for i in chosen])
            assert overlap == pytest.approx(float(S[inside].square().sum() / S.square().sum()), rel=1e-9)
            assert found.chance[share] == (count / k + count / n) / 2
    assert amplification(adapter(q=update), base(W))["q"] == amplification(adapter(q=update), base(W), 3)["q"]


def test_of_an_update_that_is_the_weight_itself() -> None:
    _, W, T = planted_case(12, 9, [0])
    A, B = W, torch.eye(12, dtype=F64)
    found = amplification(adapter(q=lora.LoRAUpdate(A, 2 * B, 12)), base(W))["q"]  # ΔW = 2·W
    assert found.r == 9
    assert found.by_update == pytest.approx(float(T.norm()))
    assert found.factor == pytest.approx(2)


def test_random_directions_have_the_expected_norm() -> None:
    _, W, _ = planted_case(12, 9, [0])
    found = amplification(adapter(q=drawn(12, 9, 3, 0)), base(W))["q"]
    draws = [planted.orthonormal(12, 3, seed).t() @ W @ planted.orthonormal(9, 3, 5000 + seed) for seed in range(1000)]
    squares = torch.stack([core.square().sum() for core in draws])
    assert abs(float(squares.mean()) - found.by_random**2) < 4 * float(squares.std()) / math.sqrt(1000)


def test_the_overlap_of_random_updates_is_the_chance_value() -> None:
    _, W, _ = planted_case(30, 20, [0])
    layers = {f"d{i}": drawn(30, 20, 2, 10 * i) for i in range(300)}
    model = nn.ModuleDict({name: base(W)["q"] for name in layers})
    found = list(amplification(adapter(**layers), model).values())
    for share in SHARES:
        values = np.array([each.overlap[share] for each in found])
        assert abs(values.mean() - found[0].chance[share]) < 4 * values.std() / math.sqrt(len(values))


# --- a dense reference ----------------------------------------------------------------------------------------------


def agree(found: Amplification, delta: Tensor, W: Tensor) -> None:
    """Compare with what numpy finds in the dense matrices ΔW and W."""
    D, W_ = delta.numpy(), W.numpy()
    U, S, Vh = np.linalg.svd(D, full_matrices=False)
    X, T, Yh = np.linalg.svd(W_, full_matrices=False)
    r = found.r
    assert r <= (1e-12 * S[0] < S).sum()
    assert found.by_update == pytest.approx(np.linalg.norm(U[:, :r].T @ W_ @ Vh[:r].T), rel=1e-9)
    assert found.by_weight == pytest.approx(np.linalg.norm(T[:r]), rel=1e-9)
    assert found.by_random == pytest.approx(np.linalg.norm(W_) * r / math.sqrt(W_.size), rel=1e-9)
    assert found.weight_norm == pytest.approx(np.linalg.norm(W_), rel=1e-9)
    assert found.update_norm == pytest.approx(np.linalg.norm(D), rel=1e-9)
    for share, overlap in found.overlap.items():
        count = max(1, round(share * min(W_.shape)))
        left, right = np.linalg.norm(X[:, :count].T @ D) ** 2, np.linalg.norm(D @ Yh[:count].T) ** 2
        assert overlap == pytest.approx((left + right) / 2 / np.linalg.norm(D) ** 2, rel=1e-8)


@given(SIZES)
def test_it_is_what_a_dense_reference_computes(sizes: tuple[int, ...]) -> None:
    k, n, r, s, seed = sizes
    update, W = drawn(k, n, r, seed), torch.randn(k, n, dtype=F64, generator=planted.generator(seed))
    found = amplification(adapter(q=update), base(W), s)["q"]
    assert found.r == min(s, r, k, n)
    agree(found, update.delta(), W)


def transposed_conv(W: Tensor, groups: int) -> Tensor:
    """The matrix (out, in / groups · kernel) of a stored (in, out / groups, *kernel)."""
    return torch.cat([part.transpose(0, 1) for part in W.chunk(groups)]).flatten(1)


def columns(W: Tensor) -> Tensor:
    return W.t()


def flat(W: Tensor) -> Tensor:
    return W.flatten(1)


@dataclass(frozen=True)
class Kind:
    """make: a plain layer, or one of 0.1. matrices: by name of the result, what is compared in the stored weight `key`."""

    make: Callable[[], nn.Module]
    matrices: dict[str, Callable[[Tensor], Tensor]]
    config: dict[str, Any] = field(default_factory=dict)
    key: str = "weight"


FIRST_AND_LAST = {"layer[0]": lambda W: W[:4], "layer[2]": lambda W: W[5:]}
OF_COLUMNS = {"layer[0]": lambda W: W[:, :4].t(), "layer[2]": lambda W: W[:, 5:].t()}
Q_AND_V = {"layer.q_proj": lambda W: W[:4], "layer.v_proj": lambda W: W[8:]}
UNMERGED = {"r": 2, "merge_weights": False}
KINDS = {
    "linear": Kind(lambda: nn.Linear(5, 4), {"layer": flat}),
    "transformers' Conv1D": Kind(lambda: hf_conv1d(4, 5), {"layer": columns}),
    "fused": Kind(lambda: nn.Linear(5, 7), FIRST_AND_LAST, THREE),
    "fused Conv1D": Kind(lambda: hf_conv1d(7, 5), OF_COLUMNS, THREE),
    "embedding": Kind(lambda: nn.Embedding(7, 4), {"layer": columns}),
    "grouped convolution": Kind(lambda: nn.Conv1d(4, 6, 3, groups=2), {"layer": flat}),
    "transposed": Kind(lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2), {"layer": lambda W: transposed_conv(W, 2)}),
    "bilinear": Kind(lambda: nn.Bilinear(3, 4, 5), {"layer": flat}),
    "attention": Kind(lambda: nn.MultiheadAttention(4, 2), Q_AND_V, {"target_modules": ["q_proj", "v_proj"]}, "in_proj_weight"),
    "convolution of 0.1": Kind(lambda: lora.Conv2d(2, 4, 3, groups=2, **UNMERGED), {"layer": flat}),
    "transposed, of 0.1": Kind(
        lambda: lora.ConvLoRA(nn.ConvTranspose2d, 4, 6, 3, **UNMERGED), {"layer": lambda W: W.transpose(0, 1).flatten(1)}
    ),
}


def models(kind: Kind) -> tuple[nn.Module, nn.Module]:
    """The plain model and the adapted one, in float64."""
    layer = kind.make().double()
    if not isinstance(layer, lora.AdaptedLayer):
        return adapted(layer, **kind.config)
    model = fill(nn.ModuleDict({"layer": layer}))
    plain = copy.deepcopy(model)
    lora.eject(plain)
    return plain, model


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_and_slice(kind: str) -> None:
    plain, model = models(KINDS[kind])
    key, matrices = f"layer.{KINDS[kind].key}", KINDS[kind].matrices
    W = plain.state_dict()[key]
    delta = lora.merged_state_dict(model)[key] - W
    found = amplification(lora.extract(model), plain)
    assert list(found) == list(matrices)
    for name, matrix in matrices.items():
        agree(found[name], matrix(delta), matrix(W))


def test_a_folder_of_weights_gives_what_the_model_gives(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    W = torch.randn(6, 7)
    save_file({"q.weight": W}, tmp_path / "model.safetensors")
    one = adapter(q=drawn(6, 7, 2, 0))
    assert (
        amplification(one, tmp_path) == amplification(one, str(tmp_path / "model.safetensors")) == amplification(one, base(W))
    )


# --- large, low precision -------------------------------------------------------------------------------------------


def test_a_weight_is_read_in_float64_block_by_block() -> None:
    W = torch.randn(2100, 6).bfloat16()
    update = drawn(2100, 6, 3, 0)
    agree(amplification(adapter(q=update), base(W))["q"], update.delta(), W.double())


@pytest.mark.parametrize("decay", [0.0, 0.5], ids=["flat", "decaying"])
def test_the_stated_error_of_large_weights_holds(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "_EXACT", 700)  # so that weights of 800 are large
    k, n = 800, 900
    torch.manual_seed(0)
    W = torch.randn(k, n) * torch.arange(1, n + 1) ** -decay
    update = planted.update(planted.orthonormal(k, 64, 0), planted.apart(64, 0).sqrt(), planted.orthonormal(n, 64, 1))
    found = amplification(adapter(q=update), base(W))["q"]
    X, T, Yh = torch.linalg.svd(W.double(), full_matrices=False)
    U, S, Vh = low_rank.svd([low_rank.Term(update.B, update.A, update.scaling)])
    assert 0.99 <= found.by_weight / float(T[:64].norm()) <= 1 + 1e-5
    assert found.by_update == pytest.approx(float((U.t() @ W.double() @ Vh.t()).norm()), rel=1e-9)
    for share, overlap in found.overlap.items():
        count = round(share * k)
        exact = (X[:, :count].t() @ (U * S)).square().sum() + ((S[:, None] * Vh) @ Yh[:count].t()).square().sum()
        assert abs(overlap - float(exact / (2 * S.square().sum()))) < 0.01


# --- what it cannot be computed of ----------------------------------------------------------------------------------


def test_of_an_update_that_is_zero_it_is_not_a_number() -> None:
    update, W, T = planted_case(6, 7, [0])
    found = amplification(adapter(q=lora.LoRAUpdate(update.A, 0 * update.B, 1)), base(W))["q"]
    assert (found.r, found.by_update, found.by_weight, found.by_random, found.update_norm) == (0, 0.0, 0.0, 0.0, 0.0)
    assert found.weight_norm == pytest.approx(float(T.norm()))
    assert set(found.overlap.values()) == {0.0}
    assert math.isnan(found.factor)


def test_of_directions_that_the_weight_lacks_it_is_infinite() -> None:
    W = torch.diag(torch.tensor([2.0, 1, 0, 0]))
    found = amplification(adapter(q=lora.LoRAUpdate(torch.eye(4)[3:], torch.eye(4)[:, 3:], 1)), base(W))["q"]
    assert (found.by_update, found.factor) == (0.0, math.inf)
    nothing = amplification(adapter(q=drawn(4, 4, 2, 0)), base(0 * W))["q"]
    assert (nothing.by_weight, nothing.factor) == (0.0, math.inf)


def test_dora_and_what_is_not_finite_are_refused_by_name() -> None:
    update, W, _ = planted_case(6, 7, [0])
    dora = lora.LoRAUpdate(update.A, update.B, 1, magnitude=torch.ones(6))
    with pytest.raises(lora.AlgebraError, match=r"^q: a DoRA update scales all of W"):
        amplification(adapter(q=dora), base(W))
    with pytest.raises(lora.AlgebraError, match=r"^q: its lora_A holds 7 numbers that are not finite"):
        amplification(adapter(q=lora.LoRAUpdate(update.A * math.nan, update.B, 1)), base(W))
    broken = W.clone()
    broken[2, 3] = math.nan
    with pytest.raises(lora.AlgebraError, match=r"^q: the base's weight holds numbers that are not finite"):
        amplification(adapter(q=update), base(broken))


def test_a_base_that_does_not_fit_is_refused(tmp_path: Any) -> None:
    update, W, _ = planted_case(6, 7, [0])
    one = adapter(q=update)
    with pytest.raises(lora.LayerError, match="no layer 'q'"):
        amplification(one, base(W, "other"))
    with pytest.raises(lora.LayerError, match=r"'q' has a weight of .7, 6."):
        amplification(one, base(W.t().contiguous()))
    with pytest.raises(lora.LayerError, match=r"^q: its weight is offloaded"):
        amplification(one, base(W).to("meta"))
    with pytest.raises(lora.LoRAError, match="nowhere"):
        amplification(one, tmp_path / "nowhere")
    for r in (0, -1, 1.5, True):
        with pytest.raises(lora.ConfigError, match="the rank must be a positive integer"):
            amplification(one, base(W), r)  # type: ignore[arg-type]
