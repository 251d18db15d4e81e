"""Updates as values: what their factors may be, and the ΔW that they mean."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import Tensor

import loralib as lora
from loralib.adapters.convolution_updates import LegacyTransposedUpdate
from models import bits, close, same_bits
from sample_adapters import whole

UPDATES = {
    "LoRAUpdate": lambda: lora.LoRAUpdate(whole(2, 3), whole(5, 2), 3),
    "LoRAUpdate of a bilinear layer": lambda: lora.LoRAUpdate(whole(2, 3, 4), whole(5, 2), 3),
    "ProjectionUpdate": lambda: lora.ProjectionUpdate(whole(2, 3), whole(5, 2), 3, use_rslora=True),
    "EmbeddingUpdate": lambda: lora.EmbeddingUpdate(whole(2, 7), whole(5, 2), 3),
    "ConvolutionUpdate": lambda: lora.ConvolutionUpdate(whole(2, 3, 4, 5), whole(6, 2, 1, 1), 3, groups=2, transposed=True),
    "LegacyConvolutionUpdate": lambda: lora.LegacyConvolutionUpdate(whole(6, 6), whole(15, 6), 3, weight_shape=(5, 2, 3, 3)),
    "LegacyTransposedUpdate": lambda: LegacyTransposedUpdate(whole(6, 15), whole(6, 6), 3, weight_shape=(5, 2, 3, 3)),
    "FusedUpdate": lambda: lora.FusedUpdate(whole(4, 3), whole(6, 2), 3, enable_lora=(True, False, True), widths=(4, 1, 2)),
}


# --- delta ----------------------------------------------------------------------------------------------------------


def dense(update: lora.LoRAUpdate) -> Tensor:
    """ΔW by its definition, number by number."""
    A, B, s = update.A.double(), update.B.double().flatten(1), update.scaling
    if isinstance(update, lora.EmbeddingUpdate):
        return torch.stack([s * (B @ A[:, v]) for v in range(A.shape[1])])
    if isinstance(update, lora.LegacyConvolutionUpdate):
        return (s * (B @ A)).reshape(update.weight_shape)
    if isinstance(update, lora.FusedUpdate):
        slices, row, n = [], 0, 0
        for width, on in zip(update.widths, update.enable_lora, strict=True):
            a, b = A[n * update.r : (n + 1) * update.r], B[row : row + width]
            slices.append(s * (b @ a) if on else torch.zeros(width, A.shape[1], dtype=torch.float64))
            row, n = row + width * on, n + on
        return torch.cat(slices)
    return s * torch.stack([sum(b * a for b, a in zip(row, A, strict=True)) for row in B])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", UPDATES)
def test_delta_is_what_the_formula_says_in_at_least_float32(kind, dtype):
    update = UPDATES[kind]()
    update = dataclasses.replace(update, A=update.A.to(dtype), B=update.B.to(dtype))
    assert update.delta().dtype == torch.promote_types(dtype, torch.float32)
    assert update.delta().shape == dense(update).shape
    assert close(update.delta(), dense(update).to(update.delta().dtype), factor=4)
    assert not update.delta().requires_grad


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("kind", UPDATES)
def test_the_scaling_goes_by_the_rank_asked_for(kind, use_rslora):
    update = dataclasses.replace(UPDATES[kind](), use_rslora=use_rslora)
    assert update.r == 2
    assert update.scaling == (3 / math.sqrt(2) if use_rslora else 1.5)


def test_factors_of_two_dtypes_have_a_delta():
    for make in UPDATES.values():
        update = make()
        mixed = dataclasses.replace(update, A=update.A.bfloat16())
        assert close(mixed.delta(), update.delta(), factor=4)


# --- factors that do not fit ----------------------------------------------------------------------------------------

t = torch.ones
NO_FACTORS = {
    "ranks differ": (lora.LoRAUpdate, (t(2, 3), t(4, 3)), {}),
    "one dimension": (lora.LoRAUpdate, (t(3), t(4, 3)), {}),
    "a kernel in B": (lora.LoRAUpdate, (t(2, 3), t(4, 2, 2)), {}),
    "rank 0": (lora.LoRAUpdate, (t(0, 3), t(4, 0)), {}),
    "projection, ranks differ": (lora.ProjectionUpdate, (t(2, 3), t(4, 1)), {}),
    "embedding, ranks differ": (lora.EmbeddingUpdate, (t(2, 7), t(4, 1)), {}),
}


@pytest.mark.parametrize("case", NO_FACTORS)
def test_what_are_no_factors_of_one_update_is_refused(case):
    cls, (A, B), structure = NO_FACTORS[case]
    with pytest.raises(lora.ConfigError, match=r"lora_A \(.*\) and lora_B \(.*\) are not factors of one update: "):
        cls(A, B, 1, **structure)


# --- form -----------------------------------------------------------------------------------------------------------


def changed(update: lora.LoRAUpdate) -> list[tuple[str, lora.LoRAUpdate]]:
    """Updates that differ from `update` in one thing that matters when one is loaded in the place of the other."""
    others: list[tuple[str, lora.LoRAUpdate]] = []
    if type(update) is lora.LoRAUpdate:
        others.append(("kind", lora.ProjectionUpdate(update.A, update.B, 3)))
    if isinstance(update, lora.ConvolutionUpdate):
        others.append(("groups", dataclasses.replace(update, groups=3)))
        others.append(("transposed", dataclasses.replace(update, transposed=False)))
    if isinstance(update, lora.FusedUpdate):
        others.append(("enable_lora", dataclasses.replace(update, enable_lora=(True, True, False), widths=(4, 2, 1))))
        others.append(("widths", dataclasses.replace(update, widths=(4, 2, 2))))
    if isinstance(update, lora.LegacyConvolutionUpdate):
        others.append(("weight_shape", dataclasses.replace(update, weight_shape=(10, 1, 3, 3))))
    return others


@pytest.mark.parametrize("kind", UPDATES)
def test_form_names_what_differs(kind):
    update = UPDATES[kind]()
    assert update.form() == dataclasses.replace(update, A=update.A + 1, lora_alpha=7, use_rslora=True).form()
    assert dict(update.form())["kind"] == update.kind
    assert dict(update.form())["lora_A"] == tuple(update.A.shape)
    for key, other in changed(update):
        assert dict(update.form())[key] != dict(other.form())[key]
        assert {k for (k, a), (_, b) in zip(update.form(), other.form(), strict=True) if a != b} <= {key, "widths"}


# --- as values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))])
@pytest.mark.parametrize("kind", UPDATES)
def test_an_update_can_be_copied_and_pickled(kind, how):
    update = UPDATES[kind]()
    other = how(update)
    assert type(other) is type(update)
    assert other.form() == update.form()
    assert (other.lora_alpha, other.use_rslora) == (update.lora_alpha, update.use_rslora)
    assert same_bits(other.delta(), update.delta())


@pytest.mark.parametrize("kind", UPDATES)
def test_an_update_cannot_be_changed(kind):
    update = UPDATES[kind]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.lora_alpha = 1
    before = bits(update.A), bits(update.B)
    update.delta().add_(1)
    assert (bits(update.A), bits(update.B)) == before


@pytest.mark.parametrize("kind", UPDATES)
def test_an_adapter_in_another_dtype_keeps_the_class_and_structure_of_its_updates(kind):
    update = UPDATES[kind]()
    adapter = lora.Adapter(lora.LoRAConfig(r=2), {"layer": update}).to(dtype=torch.float64)
    moved = pickle.loads(pickle.dumps(adapter)).layers["layer"]
    assert type(moved) is type(update)
    assert moved.form() == update.form()
    assert moved.A.dtype == torch.float64
    assert close(moved.delta(), update.delta(), factor=4)
    assert same_bits(adapter.delta("layer"), moved.delta())
