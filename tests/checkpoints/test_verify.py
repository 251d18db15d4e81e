"""The check accepts every right result and finds every wrong number in what it samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import loralib as lora
from kinds import KINDS, every_kind
from loralib.adapters.config_of import described
from loralib.checkpoints import verify
from models import mlp


def merged(folder, plain: nn.Module, adapter: lora.Adapter, dtype: torch.dtype = torch.float32):
    save_file({name: t.to(dtype) for name, t in plain.state_dict().items()}, folder / "base.safetensors")
    lora.merge_checkpoint(folder / "base.safetensors", adapter, folder / "out")
    return folder / "base.safetensors", adapter, folder / "out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", every_kind)
def test_a_right_result_is_within_rounding(kind, dtype, tmp_path):
    torch.manual_seed(0)
    plain, model = KINDS[kind].build()
    checked = verify.check_merged(*merged(tmp_path, plain, lora.extract(model), dtype))
    assert 0 <= checked.worst <= 1
    assert checked.numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_renormalised_rows_are_within_rounding(dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(200, 9, max_norm=1.0, padding_idx=3))
    plain = nn.Sequential(nn.Embedding(200, 9))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
    model[0].lora_A.data.normal_()
    assert 0 < verify.check_merged(*merged(tmp_path, plain, lora.extract(model), dtype)).worst <= 1


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 64), width=st.integers(1, 20), dora=st.booleans(), wrong=st.integers(0, 10**6), off=st.floats(0.05, 9)
)
def test_a_wrong_number_is_found(rows, width, dora, wrong, off, tmp_path_factory):
    torch.manual_seed(rows)
    magnitude = torch.rand(rows) if dora else None
    update = lora.LoRAUpdate(torch.randn(1, width), torch.randn(rows, 1), 1, magnitude=magnitude)
    adapter = lora.Adapter(described(lora.LoRAConfig(), {"0": update}), {"0": update})
    given = merged(tmp_path_factory.mktemp("wrong"), mlp(width, rows), adapter)
    assert verify.check_merged(*given).worst <= 1
    file = given[2] / "model.safetensors"
    tensors = load_file(file)
    tensors["0.weight"].view(-1)[wrong % (rows * width)] += off
    save_file(tensors, file)
    checked = verify.check_merged(*given)
    assert checked.worst > 1
    assert checked.where == "0.weight"


def test_numbers_that_are_none_are_found(tmp_path):
    update = lora.LoRAUpdate(torch.randn(1, 4), torch.randn(3, 1), 1)
    given = merged(tmp_path, mlp(4, 3), lora.Adapter(described(lora.LoRAConfig(), {"0": update}), {"0": update}))
    tensors = load_file(given[2] / "model.safetensors")
    tensors["0.weight"][1, 1] = float("nan")
    save_file(tensors, given[2] / "model.safetensors")
    assert verify.check_merged(*given).worst == float("inf")


def test_large_weights_are_sampled(tmp_path):
    update = lora.LoRAUpdate(torch.randn(2, 7), torch.randn(300, 2), 1)
    layers = {f"{2 * i}": update for i in range(1)}
    given = merged(tmp_path, mlp(7, 300), lora.Adapter(described(lora.LoRAConfig(), layers), layers))
    checked = verify.check_merged(*given)
    assert (checked.numbers, checked.tensors) == (64 * 7, 1)
    assert checked == verify.check_merged(*given, seed=0)
