"""What the commands on files of adapters share: reading in any format, and writing."""

import argparse
from pathlib import Path

import pytest
import torch

import loralib as lora
from cli.conftest import of_rank_2
from loralib.cli import files, main, outputs
from loralib.cli.parsing import OneSentenceParser


def test_what_is_said_of_silent_files_is_for_those_among_several(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora.save(of_rank_2(0), place / "old.pt", "loralib")
    words = ["combine", str(place / "one"), str(place / "old.pt"), "--weights", "1", "-1", "-o", str(place / "zero")]
    assert main(words) == 2
    assert "--lora-alpha" in capsys.readouterr().err
    assert main([*words, "--lora-alpha", "4"]) == 0
    zero = lora.load(place / "zero")
    assert all(float(zero.delta(name).abs().max()) < 1e-6 for name in zero.layers)


def reading(*words: str) -> argparse.Namespace:
    parser = OneSentenceParser(prog="loralib toy")
    files.add_reading(parser)
    return parser.parse_args(list(words))


@pytest.mark.parametrize(("text", "mask"), [("true,false", (True, False)), ("1, 0 ,TRUE", (True, False, True))])
def test_a_mask_is_read_from_words(text: str, mask: tuple[bool, ...]) -> None:
    assert reading("--enable-lora", text).enable_lora == mask


@pytest.mark.parametrize("text", ["", "yes", "true,,false", "2"])
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(lora.ConfigError, match="is not a list of truth values; write true,false,true"):
        reading("--enable-lora", text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint of loralib 0.1, which does not say lora_alpha."""
    lora.save(of_rank_2(0), tmp_path / "old.pt", "loralib")
    return tmp_path / "old.pt"


def test_what_a_file_does_not_say_is_asked_for_or_guessed(old: Path) -> None:
    with pytest.raises(lora.FormatError, match="lora_alpha"):
        files.read(old, reading())
    read = files.read(old, reading("--lora-alpha", "8"))
    assert {update.lora_alpha for update in read.layers.values()} == {8}
    assert all(isinstance(update.lora_alpha, int) for update in read.layers.values())
    guessed = files.read_guessing(old, reading())
    assert (guessed.format, guessed.guessed) == ("loralib", True)
    assert {update.scaling for update in guessed.adapter.layers.values()} == {1}
    assert guessed.adapter.source == read.source
    told = files.read_guessing(old, reading("--lora-alpha", "8"))
    assert (told.guessed, told.adapter) == (False, read)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-alpha", "8"], "--lora-alpha is for files that do not say it, and .*one says its own; leave it out"),
        (["--enable-lora", "true"], "--enable-lora is for checkpoints of loralib 0.1, and .*one is none; leave it out"),
        (["--from", "kohya", "--keys", "k.json"], "--from names a known format, and --keys is for files of none"),
    ],
)
def test_what_the_file_says_itself_cannot_be_said_again(words: list[str], message: str, place: Path) -> None:
    with pytest.raises(lora.ConfigError, match=message):
        files.read(place / "one", reading(*words))


@pytest.mark.parametrize("content", ["{}", '{"a": 1}', "[]", "{", '{"(a*)*b": "c"}'])
def test_what_is_no_key_map_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text(content)
    with pytest.raises(lora.FormatError, match=r"k\.json"):
        files.read_keys(tmp_path / "k.json")
    (tmp_path / "k.json").write_text('{"a(.*)": "b"}')
    assert files.read_keys(tmp_path / "k.json") == {"a(.*)": "b"}


def test_an_adapter_with_numbers_that_are_none_is_neither_read_nor_written(tmp_path: Path) -> None:
    update = lora.LoRAUpdate(torch.full((1, 2), float("nan")), torch.ones(3, 1), 1)
    broken = lora.Adapter(lora.LoRAConfig(), {"q": update})
    lora.save(broken, tmp_path / "a.safetensors", "safetensors")
    with pytest.raises(lora.AlgebraError, match=r"a\.safetensors: 'q' is unusable.*Nothing was written"):
        files.read(tmp_path / "a.safetensors", reading())
    with pytest.raises(lora.AlgebraError, match=r"the result: 'q' is unusable"):
        files.write(broken, tmp_path / "b.safetensors", "safetensors")
    assert not (tmp_path / "b.safetensors").exists()
    assert files.read_guessing(tmp_path / "a.safetensors", reading()).adapter == broken


@pytest.mark.parametrize(
    ("output", "format", "count"),
    [("x", "peft", 2), ("x.safetensors", "diffusers", 1), ("x", "diffusers", 1)],
)
def test_what_is_written_is_the_files_that_were_promised(
    output: str, format: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = of_rank_2(0).rename({"": "unet"}) if format == "diffusers" else of_rank_2(0)
    with outputs.free_output(tmp_path / output, format, False, []):
        files.write(held, tmp_path / output, format)
    targets = outputs.targets(tmp_path / output, format)
    assert len(targets) == count
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(targets)
    said = capsys.readouterr().out
    assert said.startswith("Wrote ")
    assert all(f"{path} ({path.stat().st_size:,} bytes)" in said for path in targets)
    report = files.report_of(held, tmp_path / output, format)
    assert [entry["path"] for entry in report["files"]] == list(map(str, targets))
    assert (report["layers"], report["ranks"], report["parameters"]) == (2, [2], 2 * (2 * 6 + 4 * 2))
    with (
        pytest.raises(lora.ConfigError, match="exists; add --overwrite"),
        outputs.free_output(tmp_path / output, format, False, []),
    ):
        pytest.fail("it is not free")
    with outputs.free_output(tmp_path / output, format, True, []):
        files.write(held, tmp_path / output, format, quiet=True)
    assert capsys.readouterr().out == ""
