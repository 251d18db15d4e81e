"""An adapter is written over nothing unasked, over adapters only, and not among other files unless asked."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora
from cli.conftest import WORDS, of_rank_2
from loralib.cli import ADAPTERS, main, outputs


@pytest.mark.parametrize("command", [command for command in ADAPTERS if command != "info"])
def test_a_command_that_writes_overwrites_nothing_unasked(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main([command, *WORDS[command]]) == 0
    assert main([command, *WORDS[command]]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([command, *WORDS[command], "--overwrite"]) == 0


@pytest.mark.parametrize("command", ["convert", "combine", "extract"])
def test_a_folder_of_other_files_is_written_to_only_when_asked_and_they_stay(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = [command, *WORDS[command]]
    out = place / words[words.index("-o") + 1]
    words = [word for word in words if word not in ("safetensors", "--format")] + ["--format", "peft"]
    words[words.index("-o") + 1] = "thesis"
    notes = {"thesis.tex": "years of work", ".hidden": "", "figures/plot.svg": "<svg/>"}
    for name, text in notes.items():
        (place / "thesis" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "thesis" / name).write_text(text)
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "thesis holds other files (.hidden, figures, thesis.tex); give another place, or add --overwrite" in shown
    assert sorted(path.name for path in (place / "thesis").iterdir()) == [".hidden", "figures", "thesis.tex"]
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "--overwrite"]) == 0
    assert {name: (place / "thesis" / name).read_text() for name in notes} == notes
    assert lora.load(place / "thesis").layers
    assert not out.exists()


def test_a_folder_with_an_adapter_of_another_format_does_not_get_a_second_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora.save(of_rank_2(0).rename({"": "unet"}), place / "images", "diffusers")
    words = ["convert", str(place / "one"), "-o", str(place / "images"), "--format", "peft"]
    for more in ([], ["--overwrite"]):
        assert main([*words, *more]) == 2
        assert "images holds an adapter of another format (pytorch_lora_weights.safetensors)" in capsys.readouterr().err
    assert [path.name for path in (place / "images").iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_an_empty_folder_and_what_a_killed_process_left_are_no_other_files(place: Path) -> None:
    (place / "new").mkdir()
    (place / "new" / ".loralib.lock").touch()
    assert main(["convert", str(place / "one"), "-o", str(place / "new"), "--format", "peft"]) == 0


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
@pytest.mark.parametrize("kind", ["text", "tensors", "nothing"])
def test_overwrite_replaces_an_adapter_and_nothing_else(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora.save(
        lora.Adapter(lora.LoRAConfig(r=1), {"proj": lora.LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), 1)}), tmp_path / "a"
    )
    out, format = tmp_path / name, {".safetensors": "safetensors", ".pt": "loralib"}[Path(name).suffix]
    if kind == "tensors":
        tensors = {"embeddings": torch.ones(3, 4)}
        (save_file if name.endswith("safetensors") else torch.save)(tensors, out)
    else:
        out.write_text("data" if kind == "text" else "")
    before = out.read_bytes()
    words = [str(tmp_path / "a"), "-o", str(out), "--format", format, "--overwrite"]
    for command in ("convert", "combine"):
        assert main([command, *words]) == 2
        assert "is not an adapter" in capsys.readouterr().err
        assert out.read_bytes() == before
    out.unlink()
    assert main(["convert", *words]) == 0
    assert main(["convert", *words]) == 0


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a.safetensors", "peft", "peft is a folder; give the name of one"),
        ("a.bin", "peft", "peft is a folder"),
        ("file", "peft", "peft is a folder"),
        ("folder", "safetensors", "that is a folder, and safetensors is a file"),
        ("a.pt", "safetensors", r"files of this format end in \.safetensors"),
        ("a", "kohya", r"files of this format end in \.safetensors"),
        ("a.safetensors", "loralib", "end the name in .pt"),
        ("one", "peft", "that is what is read; give another place"),
    ],
)
def test_an_output_of_the_wrong_kind_is_refused(name: str, format: str, message: str, place: Path) -> None:
    (place / "file").touch()
    (place / "folder").mkdir()
    with pytest.raises(lora.ConfigError, match=message), outputs.free_output(place / name, format, True, [place / "one"]):
        pytest.fail("it is not free")


def test_paths_lead_to_the_same_file_through_links(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert outputs.same_file(tmp_path / "a", tmp_path / "link")
    (tmp_path / "b").touch()
    assert not outputs.same_file(tmp_path / "a", tmp_path / "b")
    assert not outputs.same_file(tmp_path / "none", tmp_path / "none")
