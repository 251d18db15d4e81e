"""The scaling in diffusers' files: B holds it, and a note gives lora_alpha back where that is exact."""

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given

import loralib as lora
from loralib.formats.diffusers_scaling import into_b, note, restored
from models import same_bits
from sample_adapters import updates


@pytest.mark.parametrize("note", ["[1]", '{"unet.a": 3}', '{"unet.a": [1]}', '{"unet.a": ["x", false]}', "{", "[" * 100_000])
def test_a_damaged_note_of_the_scaling_is_refused(note, tmp_path):
    stored = {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(4, 2)}
    safetensors.torch.save_file(stored, tmp_path / "f.safetensors", {"loralib_scaling": note})
    with pytest.raises(lora.FormatError, match="loralib_scaling in the metadata is damaged"):
        lora.load(tmp_path / "f.safetensors")


@pytest.mark.parametrize("lora_alpha", [1, 4, 5, 0, 1e999])
def test_a_note_of_the_scaling_never_changes_what_is_computed(lora_alpha, tmp_path):
    stored = {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.rand(4, 2)}
    note = json.dumps({"unet.a": [lora_alpha, False]})
    safetensors.torch.save_file(stored, tmp_path / "f.safetensors", {"loralib_scaling": note})
    update = lora.load(tmp_path / "f.safetensors").layers["unet.a"]
    assert same_bits(update.scaling * update.B, stored["unet.a.lora_B.weight"])
    assert update.lora_alpha == (lora_alpha if lora_alpha in (1, 4) else 2)


@given(updates(["linear", "conv"]))
def test_the_scaling_goes_into_b_and_the_update_stays(update):
    written = into_b(update)
    assert (written.scaling, written.lora_alpha, written.use_rslora) == (1, update.r, False)
    exact = update.scaling * update.B.double()
    assert torch.allclose(written.B.double(), exact, rtol=1e-6, atol=0)
    assert written.B.dtype in (update.B.dtype, torch.float32)
    assert torch.equal(written.A.double(), update.A.double())
    if written.B.dtype == update.B.dtype == torch.float64:
        assert torch.equal(written.B, exact)
    if written.B.dtype != update.B.dtype:
        assert written.A.dtype == written.B.dtype
        assert not torch.equal(exact.to(update.B.dtype).double(), exact)


@given(updates(["linear"]))
def test_a_note_is_written_where_it_gives_the_update_back_to_the_bit(update):
    written = into_b(update)
    said = note({"a": update}, {"a": written})
    found = restored({"a": written}, said, Path("x"))["a"]
    power = math.frexp(update.scaling)[0] == 0.5
    usual = (update.lora_alpha, update.use_rslora) == (update.r, False)
    assert bool(said) == (power and not usual)
    assert found == (update if said or usual else written)


def test_a_power_of_two_is_noted_for_each_layer_that_has_one():
    def of(lora_alpha: float) -> lora.LoRAUpdate:
        return lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), lora_alpha)

    layers = {"b": of(8), "a": of(1), "third": of(3), "usual": of(2)}
    written = {name: into_b(update) for name, update in layers.items()}
    said = note(layers, written)
    assert json.loads(said["loralib_scaling"]) == {"a": [1, False], "b": [8, False]}
    found = restored(written, said, Path("x"))
    assert found == {**layers, "third": written["third"]}
    assert restored(written, {}, Path("x")) == written
    assert note({"a": of(2)}, {"a": of(2)}) == {}


def test_values_too_small_for_the_dtype_are_not_given_back():
    tiny = torch.finfo(torch.float16).smallest_normal
    update = lora.LoRAUpdate(torch.ones(1, 1).half(), torch.full((1, 1), tiny * 1.001).half(), 2**-10)
    written = into_b(update)
    assert written.B.dtype == torch.float32
    assert torch.equal(written.B.double(), update.B.double() * 2**-10)
