"""What PEFT's tensors are called outside of the folders that it writes, and the copies that those folders hold."""

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import loralib as lora
from formats.conftest import CONFIG, factors, folder_with
from models import same_bits
from peers import library

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

P = "base_model.model."


class Net(nn.Sequential):
    """A model that PEFT takes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 5), nn.Conv1d(5, 4, 1), nn.Embedding(7, 5), nn.Linear(5, 3))


def trained(name: str = "default", **fields: Any) -> nn.Module:
    """PEFT's model with an update that has an effect."""
    peft = library("peft")
    model: nn.Module = peft.get_peft_model(Net(), peft.LoraConfig(**{"r": 2, "lora_alpha": 4, **fields}), adapter_name=name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                p.copy_(torch.rand(p.shape, generator=generator))
    return model


FIELDS = {
    "linear, convolution, embedding": {"target_modules": ["0", "1", "2"]},
    "dora": {"target_modules": ["0"], "use_dora": True},
    "a module in full": {"target_modules": ["0"], "modules_to_save": ["3"]},
}


@pytest.mark.parametrize("around", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("name", ["default", "my-adapter"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_the_state_dict_of_a_peft_model_is_the_adapter_that_it_saves(fields, name, around, tmp_path):
    model = trained(name, **fields)
    model.save_pretrained(tmp_path)
    saved = tmp_path / name if name != "default" else tmp_path
    expected = lora.load(saved)
    with_names = {
        around + key: tensor for key, tensor in model.state_dict().items() if "lora_" in key or "modules_to_save" in key
    }
    again = folder_with(tmp_path / "again", with_names, json.loads((saved / "adapter_config.json").read_text()))
    assert lora.load(again) == expected
    safetensors.torch.save_file({key: t.contiguous() for key, t in with_names.items()}, tmp_path / "one.safetensors")
    assert lora.detect(tmp_path / "one.safetensors") == "peft-file"
    alone = lora.load(tmp_path / "one.safetensors", config=lora.LoRAConfig(lora_alpha=4))
    assert alone.layers == expected.layers
    assert alone.tensors.keys() == expected.tensors.keys()
    assert all(same_bits(tensor, expected.tensors[key]) for key, tensor in alone.tensors.items())


@pytest.mark.parametrize("prefix", [P, "", f"module.{P}", f"_forward_module.model.{P}", f"_orig_mod.{P}", f"{P}_orig_mod."])
@pytest.mark.parametrize("infix", ["", ".default", ".x"])
def test_prefixes_and_adapter_names_are_no_part_of_the_layers_name(prefix, infix, tmp_path):
    tensors = {prefix + key: tensor for key, tensor in factors(infix=infix).items()}
    assert list(lora.load(folder_with(tmp_path / "a", tensors)).layers) == ["0"]
    torch.save(tensors, tmp_path / "b.bin")
    adapter = lora.load(tmp_path / "b.bin", config=lora.LoRAConfig(lora_alpha=3, use_rslora=True))
    assert adapter.layers["0"].scaling == 3 / 2**0.5


@pytest.mark.parametrize(
    ("tensors", "telling"),
    [
        (factors(infix=".fr") | factors(infix=".de"), r"holds 2 adapters, 'de', 'fr'; save each"),
        (factors() | {"0.lora_B.bias": torch.ones(5)}, r"'0.lora_B.bias' belongs to a kind of layer"),
        (factors() | {"0.lora_B.default.bias": torch.ones(5)}, r"'0.lora_B.default.bias' belongs to a kind"),
        (factors() | {f"{P}{k}": t for k, t in factors(layer="1").items()}, r"'0.lora_A.weight' has no PEFT name"),
        (factors(layer="0.original_module"), r"of layer '0' there is only what PEFT keeps under 'original_module'"),
    ],
)
def test_what_is_not_one_adapter_is_refused(tensors, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(folder_with(tmp_path / "a", tensors))


def test_errors_name_the_file_that_is_there(tmp_path):
    folder = folder_with(tmp_path / "a", factors() | {"0.lora_C.weight": torch.ones(1)})
    torch.save(safetensors.torch.load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    for path, name in ((folder, "adapter_model.safetensors"), (folder / "adapter_model.bin", "adapter_model.bin")):
        with pytest.raises(lora.FormatError, match=rf"{name}: tensor '0.lora_C.weight'"):
            lora.load(path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(lora.FormatError, match=r"adapter_model.bin: tensor '0.lora_C.weight'"):
        lora.load(folder)


# --- a target in modules_to_save ------------------------------------------------------------------------------------


def copies(acting: float = 2, saved: float = 2) -> dict[str, Tensor]:
    """What PEFT before 0.15 writes for a target that lies in `modules_to_save`; the original has no effect."""
    base = {f"{P}0.base_layer.weight": torch.zeros(5, 6), f"{P}0.base_layer.bias": torch.ones(5)}
    kept = factors(B=saved, layer="0.modules_to_save") | factors(A=7, B=0, layer="0.original_module")
    return base | {f"{P}{key}": tensor for key, tensor in (factors(B=acting) | kept).items()}


def test_of_a_target_in_modules_to_save_the_copy_that_acts_is_read_once(tmp_path):
    adapter = lora.load(folder_with(tmp_path / "a", copies(), CONFIG | {"modules_to_save": ["0"]}))
    assert list(adapter.layers) == ["0"]
    assert adapter.tensors.keys() == {"0.weight", "0.bias"}
    model = Net()
    lora.attach(model, adapter)
    x = torch.ones(1, 6)
    assert torch.equal(model[0](x), torch.full((1, 5), 2 * 2 * 2 * 6 + 1.0))  # s·B·A·x + bias, over the stored weight, 0
    lora.save(adapter, tmp_path / "b")
    assert lora.load(tmp_path / "b") == adapter


def test_copies_that_differ_are_refused(tmp_path):
    with pytest.raises(lora.FormatError, match=r"'base_model.model.0.modules_to_save.lora_B.weight' and another .* differ"):
        lora.load(folder_with(tmp_path / "a", copies(acting=3), CONFIG | {"modules_to_save": ["0"]}))


# --- the configuration ----------------------------------------------------------------------------------------------


def test_empty_factors_are_explained(tmp_path):
    empty = {key: torch.zeros(0) for key in factors()}
    with pytest.raises(lora.FormatError, match=r"layer '0' has no numbers in its factors, which DeepSpeed \(ZeRO-3\)"):
        lora.load(folder_with(tmp_path / "a", empty))


# --- again ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"target_modules": ["0"]}, {"target_modules": ".*", "lora_dropout": 0.1, "revision": "x"}])
def test_what_is_written_again_is_the_same_adapter(fields, tmp_path):
    tensors = {f"{P}{key}": tensor for key, tensor in (factors() | factors(layer="a.0")).items()}
    adapter = lora.load(folder_with(tmp_path / "a", tensors, CONFIG | fields))
    lora.save(adapter, tmp_path / "b")
    again = lora.load(tmp_path / "b")
    assert again == adapter
    assert again.digest() == adapter.digest()
