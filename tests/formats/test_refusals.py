"""What is no adapter, or none that can be read again: refused in a sentence that says what it is, with nothing written."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from loralib import formats
from loralib.storage.safetensors import tensor_bytes

UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
ADAPTER = lora.Adapter(lora.LoRAConfig(r=2, lora_alpha=4), {"q": UPDATE})


# --- reading --------------------------------------------------------------------------------------------------------


def lone_tensors(folder: Path) -> Path:
    lora.save(ADAPTER, folder)
    (folder / "adapter_config.json").unlink()
    return folder


def model_in_one_file(folder: Path) -> Path:
    save_file({"a.weight": torch.ones(2, 2)}, folder / "anything.safetensors")
    return folder / "anything.safetensors"


def unknown_names(folder: Path) -> Path:
    save_file({"a.lora_down": torch.ones(2, 2)}, folder / "anything.safetensors")
    return folder


def pickled_model(folder: Path) -> Path:
    torch.save({"a.weight": torch.ones(2, 2)}, folder / "anything.bin")
    return folder


def damaged(folder: Path) -> Path:
    lora.save(ADAPTER, folder / "a.safetensors", format="safetensors")
    (folder / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-1])
    return folder


def of_a_trainer(folder: Path) -> Path:
    for step in (10, 20):
        lora.save(ADAPTER, folder / f"checkpoint-{step}")
    return folder


def other_method(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    return folder


@pytest.mark.parametrize(
    ("make", "telling"),
    [
        (lone_tensors, "adapter_config.json, which says lora_alpha, is not next to it"),
        (
            lambda folder: lone_tensors(folder) / "adapter_model.safetensors",
            "adapter_config.json, which says lora_alpha, is not next to it",
        ),
        (model_in_one_file, r"its tensors \(a.weight.*a whole model, perhaps"),
        (lambda folder: model_in_one_file(folder).parent, "anything.safetensors holds no adapter.*a whole model, perhaps"),
        (unknown_names, r"its tensors \(a.lora_down …\) have names of no known format; for .*key map"),
        (pickled_model, "anything.bin holds no adapter.*a whole model, perhaps"),
        (damaged, "a.safetensors is not a whole safetensors file"),
        (of_a_trainer, "there are adapters in checkpoint-10, checkpoint-20 within it"),
        (other_method, "peft_type='IA3'"),
    ],
)
def test_what_cannot_be_read_is_said_to_be_what_it_is(make, telling, tmp_path):
    path = make(tmp_path)
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(path)


@pytest.mark.parametrize("format", ["peft", "safetensors"])
def test_a_configuration_that_contradicts_the_file_is_refused(format, tmp_path):
    path = tmp_path / "a.safetensors"
    lora.save(ADAPTER, path if format == "safetensors" else tmp_path, format=format)
    place = path if format == "safetensors" else tmp_path
    for agrees in (lora.LoRAConfig(), lora.LoRAConfig(r=2, lora_alpha=4), ADAPTER.config):
        assert lora.load(place, config=agrees).layers == ADAPTER.layers
    for other, telling in (
        (lora.LoRAConfig(r=3), "r=2, but config says r=3"),
        (lora.LoRAConfig(lora_alpha=16), "lora_alpha=4, but config says lora_alpha=16"),
        (lora.LoRAConfig(alpha_pattern={"q": 5}), "lora_alpha=4, but config says lora_alpha=5"),
    ):
        with pytest.raises(lora.FormatError, match=telling):
            lora.load(place, config=other)


def test_a_description_with_a_field_of_its_own_is_refused(tmp_path):
    said = '{"config":{},"layers":{},"metadata":{},"rows":{},"version":2,"surprise":1}'
    (tmp_path / "a.safetensors").write_bytes(tensor_bytes({}, {"loralib": said}))
    with pytest.raises(lora.FormatError, match=r"'surprise' .*no meaning in version 2"):
        lora.load(tmp_path / "a.safetensors")


# --- writing --------------------------------------------------------------------------------------------------------

UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("how", [*({"format": format} for format in formats.FORMATS), {"keys": {"(.*)": r"\1"}}])
@pytest.mark.parametrize(
    ("change", "telling"),
    [
        ({"A": torch.ones(2, 3).to(torch.float8_e4m3fn)}, "float8"),
        ({"B": torch.ones(4, 2, dtype=torch.int64)}, "int64"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"lora_alpha": -1.0}, "lora_alpha=-1"),
        ({"lora_alpha": math.nan}, "lora_alpha=nan"),
        ({"lora_alpha": True}, "lora_alpha=True"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(how, change, telling, tmp_path):
    adapter = lora.Adapter(lora.LoRAConfig(), {UNET: replace(UPDATE, **change)})
    with pytest.raises(lora.FormatError, match=f"{telling}.*Nothing was written"):
        lora.save(adapter, tmp_path / "f.safetensors", **how)
    assert not list(tmp_path.iterdir())


def test_metadata_that_are_no_text_are_not_written(tmp_path):
    with pytest.raises(lora.FormatError, match="'step' are no text"):
        lora.save(replace(ADAPTER, metadata={"step": 3}), tmp_path / "f.safetensors", format="safetensors")
    assert not list(tmp_path.iterdir())


def test_a_layer_without_a_name_has_a_place_in_one_format_only(tmp_path):
    adapter = lora.Adapter(lora.LoRAConfig(), {"": UPDATE})
    lora.save(adapter, tmp_path / "f.safetensors", format="safetensors")
    assert lora.load(tmp_path / "f.safetensors") == adapter
    with pytest.raises(lora.FormatError, match="no name; name it"):
        lora.save(adapter, tmp_path / "folder")
    lora.save(adapter.rename({"": "layer"}), tmp_path / "folder")
    assert lora.load(tmp_path / "folder").layers["layer"] == adapter.layers[""]


# --- remedies -------------------------------------------------------------------------------------------------------


def key_map_needed(folder: Path) -> None:
    lora.load(unknown_names(folder))


def underscores(folder: Path) -> None:
    save_file({"lora_unet_surprise.lora_down.weight": torch.ones(2, 3)}, folder / "k.safetensors")
    lora.load(folder / "k.safetensors")


def alpha_needed(folder: Path) -> None:
    torch.save({"q.lora_A": UPDATE.A, "q.lora_B": UPDATE.B}, folder / "f.pt")
    lora.load(folder / "f.pt")


def slices_needed(folder: Path) -> None:
    torch.save({"q.lora_A": torch.ones(4, 3), "q.lora_B": UPDATE.B}, folder / "f.pt")
    lora.load(folder / "f.pt", config=lora.LoRAConfig(lora_alpha=4))


def no_component(folder: Path) -> None:
    lora.save(ADAPTER, folder / "d", format="diffusers")


def no_name(folder: Path) -> None:
    lora.save(lora.Adapter(lora.LoRAConfig(), {"": UPDATE}), folder / "d")


def other_name(folder: Path) -> None:
    name = "text_encoder.encoder.layers.0.self_attn.q_proj"
    lora.save(lora.Adapter(lora.LoRAConfig(), {name: UPDATE}), folder / "k.safetensors", format="kohya")


def no_place(folder: Path) -> None:
    lora.save(replace(ADAPTER, metadata={"a": "b"}), folder / "k.safetensors", format="kohya")


@pytest.mark.parametrize(
    ("action", "call", "option"),
    [
        (key_map_needed, "load(path, keys={pattern: replacement}).", "--keys FILE.json"),
        (underscores, "load(path, keys={pattern: replacement}).", "--keys FILE.json"),
        (alpha_needed, "config=LoRAConfig(lora_alpha=16)).", "--lora-alpha N."),
        (slices_needed, "LoRAConfig(lora_alpha=…, enable_lora=[True, False, True]).", "--enable-lora true,false,true."),
        (no_component, "adapter.rename({'': 'unet'}). Nothing was written.", "--rename =unet. Nothing was written."),
        (no_name, "adapter.rename({'': 'layer'}). Nothing was written.", "--rename =layer. Nothing was written."),
        (
            other_name,
            "adapter.rename({'text_encoder.encoder'",
            "--rename text_encoder.encoder=text_encoder.text_model.encoder.",
        ),
        (no_place, "format='safetensors' has. Nothing was written.", "--format safetensors has. Nothing was written."),
    ],
)
def test_a_remedy_is_a_call_in_python_and_an_option_on_the_command_line(action, call, option, tmp_path):
    with pytest.raises(lora.FormatError) as error:
        action(tmp_path)
    assert call in str(error.value)
    assert option in error.value.on_the_command_line()
    assert call not in error.value.on_the_command_line()


# --- pickles --------------------------------------------------------------------------------------------------------


def test_dictionaries_that_hold_each_other_are_looked_at_once(tmp_path):
    nested: dict[str, object] = {}
    for _ in range(64):
        nested = {"a": nested, "b": nested}
    round_and_round: dict[str, object] = {}
    round_and_round["again"] = round_and_round
    for content in (nested, round_and_round):
        torch.save(content, tmp_path / "f.pt")
        with pytest.raises(lora.FormatError, match="is no state dict"):
            lora.load(tmp_path / "f.pt")


def test_a_view_that_would_grow_is_found_in_a_dictionary_in_a_dictionary(tmp_path):
    torch.save({"state_dict": {"q.lora_A": torch.ones(1).expand(1 << 20), "q.lora_B": torch.ones(1)}}, tmp_path / "f.pt")
    with pytest.raises(lora.FormatError, match="larger than the file"):
        lora.load(tmp_path / "f.pt", format="loralib", config=lora.LoRAConfig())


def test_tensors_that_share_memory_are_read(tmp_path):
    shared = torch.ones(4, 4)
    torch.save(
        {"q.lora_A": shared, "q.lora_B": shared.t(), "p.lora_A": shared[:2], "p.lora_B": shared[:, :2]}, tmp_path / "f.pt"
    )
    read = lora.load(tmp_path / "f.pt", config=lora.LoRAConfig(lora_alpha=1))
    assert {name: update.r for name, update in read.layers.items()} == {"q": 4, "p": 2}


def test_every_truncation_of_a_pickle_is_refused(tmp_path):
    path = tmp_path / "f.pt"
    lora.save(ADAPTER, path, format="loralib")
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(lora.FormatError):
            lora.load(path, config=lora.LoRAConfig(lora_alpha=4))
