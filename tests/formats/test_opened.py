"""A file is opened, unpickled and parsed once, however many formats look at it."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loralib as lora
from loralib import formats
from loralib.cli import main
from loralib.formats.opened import Opened
from loralib.storage import atomic, pickled
from loralib.storage import safetensors as storage

UPDATE = lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4)
UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something is read: a safetensors file opened, its header parsed, a file unpickled, a JSON file parsed."""
    found: Counter[str] = Counter()

    def counting(what: str, function):
        def counted(*args, **kwargs):
            found[what] += 1
            return function(*args, **kwargs)

        return counted

    class CountingJson:
        def __init__(self, what: str):
            self.loads, self.dumps = counting(what, json.loads), json.dumps

    monkeypatch.setattr(storage, "safe_open", counting("open", storage.safe_open))
    monkeypatch.setattr(storage, "json", CountingJson("header"))
    monkeypatch.setattr(pickled.torch, "load", counting("pickle", torch.load))
    monkeypatch.setattr(atomic, "json", CountingJson("json"))
    return found


def peft(folder: Path) -> Path:
    lora.save(lora.Adapter(lora.LoRAConfig(), {"q": UPDATE}), folder / "peft")
    return folder / "peft"


def peft_tensors(folder: Path) -> Path:
    return peft(folder) / "adapter_model.safetensors"


def peft_pickled(folder: Path) -> Path:
    path = peft(folder)
    tensors = load_file(path / "adapter_model.safetensors")
    torch.save(tensors, path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    return path


def one_file(folder: Path) -> Path:
    lora.save(lora.Adapter(lora.LoRAConfig(), {"q": UPDATE}), folder / "a.safetensors", format="safetensors")
    return folder / "a.safetensors"


def loralib_0_1(folder: Path) -> Path:
    torch.save({"q.lora_A": UPDATE.A, "q.lora_B": UPDATE.B}, folder / "old.pt")
    return folder / "old.pt"


def in_a_folder(folder: Path) -> Path:
    return loralib_0_1(folder).parent


def diffusers(folder: Path) -> Path:
    lora.save(lora.Adapter(lora.LoRAConfig(), {UNET: UPDATE}), folder / "d", format="diffusers")
    return folder / "d"


def kohya(folder: Path) -> Path:
    lora.save(lora.Adapter(lora.LoRAConfig(), {UNET: UPDATE}), folder / "k.safetensors", format="kohya")
    return folder / "k.safetensors"


SAFE, PICKLE = {"open": 1, "header": 1}, {"pickle": 1}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (peft, SAFE | {"json": 1}),
        (peft_tensors, SAFE | {"json": 1}),
        (peft_pickled, PICKLE | {"json": 1}),
        (one_file, SAFE),
        (loralib_0_1, PICKLE | {"open": 1}),  # that it is not a safetensors file has to be found out
        (in_a_folder, PICKLE | {"open": 1}),
        (diffusers, SAFE),
        (kohya, SAFE),
    ],
)
def test_info_reads_everything_once(make, expected, tmp_path, reads, capsys):
    path = make(tmp_path)
    for words in (["info", str(path)], ["info", str(path), "--json"]):
        reads.clear()
        assert main(words) == 0
        assert reads == expected, "JSON in metadata is not counted here: the formats parse it themselves"


def test_a_file_of_a_key_map_is_read_once(tmp_path, reads, capsys):
    save_file({"q.down": UPDATE.A, "q.up": UPDATE.B}, tmp_path / "own.safetensors")
    (tmp_path / "keys.json").write_text(r'{"(.*)\\.down": "\\1.lora_A", "(.*)\\.up": "\\1.lora_B"}')
    assert main(["info", str(tmp_path / "own.safetensors"), "--keys", str(tmp_path / "keys.json")]) == 0
    assert reads == SAFE | {"json": 1}


@pytest.mark.parametrize("make", [one_file, loralib_0_1])
def test_a_damaged_file_is_looked_at_once_too(make, tmp_path, reads):
    path = make(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    reads.clear()
    with pytest.raises(lora.FormatError):
        lora.load(path)
    assert max(reads.values()) == 1


def test_what_is_opened_is_read_later(tmp_path):
    file = formats.open(one_file(tmp_path))
    assert (file.format, file.opened.path) == ("safetensors", tmp_path / "a.safetensors")
    assert file.read() == lora.load(tmp_path / "a.safetensors")
    with pytest.raises(lora.FormatError, match="config says r=3"):
        file.read(lora.LoRAConfig(r=3))


def test_what_was_read_is_remembered_and_so_is_that_it_could_not_be(tmp_path):
    opened = Opened(one_file(tmp_path))
    assert opened.mapped() is opened.mapped()
    errors = []
    for _ in range(2):
        with pytest.raises(lora.FormatError, match="is not a checkpoint of tensors") as error:
            opened.state_dict()
        errors.append(error.value)
    assert errors[0] is errors[1]
