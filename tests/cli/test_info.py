"""`loralib info`: what it says is what is in the file, and it fits the terminal."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.cli import files, main
from loralib.cli.terminal import BLOCKS, sparkline
from peers import data
from sample_adapters import adapters, tensor


def of_layers(layers: dict[str, lora.LoRAUpdate], **more: Any) -> lora.Adapter:
    return lora.Adapter(lora.LoRAConfig(), layers, **more)


def linear(r: int = 4, seed: int = 0, d: int = 12, k: int = 10) -> lora.LoRAUpdate:
    return lora.LoRAUpdate(tensor((r, d), torch.float32, seed), tensor((k, r), torch.float32, seed + 1), 2 * r)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Twelve layers of three kinds, saved."""
    layers = {f"model.layers.{i}.{kind}_proj": linear(seed=i) for i in range(12) for kind in "qkv"}
    lora.save(of_layers(layers), tmp_path / "deep")
    return tmp_path / "deep"


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["info", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["info", *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("loralib: ")
    assert shown.err.count("\n") == 1
    return shown.err


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_facts_of_an_adapter_from_peft(capsys: pytest.CaptureFixture[str]) -> None:
    path = data("adapters", "distilbert-imdb")
    shown = told(capsys, path)
    facts = dict(re.findall(r"^(\S+(?: \S+)?) {2,}(.+)$", shown.partition("\n\n")[0], re.M))
    assert facts["from"] == "PEFT folder distilbert-imdb"
    assert facts["base model"] == "distilbert-base-uncased"
    assert (facts["r"], facts["lora_alpha"], facts["scaling"]) == ("8", "16", "2")
    assert facts["targets"] == "q_lin (6 layers), v_lin (6 layers)"
    assert facts["parameters"].startswith("147,456 in factors, 592,130")
    assert facts["extra"] == "classifier, pre_classifier"
    assert facts["stored"] == "2,958,344 bytes, float32"
    assert facts["task_type"] == "SEQ_CLS"
    assert facts["digest"] == lora.load(path).digest()


@given(adapter=adapters())
def test_the_numbers_of_each_layer_are_those_of_its_dense_product(adapter: lora.Adapter) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loralib.cli.files.read_guessing", lambda *_: files.Read(adapter, "safetensors", guessed=False))
        printed: list[str] = []
        patch.setattr("builtins.print", printed.append)
        assert main(["info", "x", "--json"]) == 0
    said = json.loads(printed[0])
    assert said["digest"] == adapter.digest()
    assert said["layers"].keys() == adapter.layers.keys()
    for name, update in adapter.layers.items():
        delta = update.delta().double()
        layer = said["layers"][name]
        exact = torch.block_diag(*delta) if isinstance(update, lora.ExpertsUpdate) else delta.flatten(1)
        expected = torch.linalg.svdvals(exact)
        found = torch.tensor(layer["singular_values"], dtype=torch.float64)
        n = min(len(found), len(expected))
        tolerance = 1e-5 * float(expected[0])
        assert torch.allclose(found[:n], expected[:n], atol=tolerance)
        assert expected[n:].max() < tolerance if len(expected) > n else found[n:].sum() < tolerance
        assert layer["norm"] == pytest.approx(float(exact.norm()), rel=1e-4)
        carried = found.square().cumsum(0)
        assert layer["rank_at_99_percent"] == 1 + int((carried < 0.99 * carried[-1]).sum())
        assert (layer["r"], layer["kind"], layer["scaling"]) == (update.r, update.kind, update.scaling)
    assert said["tensors"].keys() == adapter.tensors.keys()
    assert {name: tuple(rows["indices"]) for name, rows in said["rows"].items()} == {
        name: rows.indices for name, rows in adapter.rows.items()
    }
    assert said["metadata"] == dict(adapter.metadata)


def test_dora_is_said_and_what_the_spectrum_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    update = replace(linear(), magnitude=torch.ones(10))
    lora.save(of_layers({"a.proj": update}), tmp_path / "dora")
    shown = told(capsys, tmp_path / "dora")
    assert "DoRA         1 of 1 layers" in shown
    assert "s·B·A" in shown
    plain = of_layers({"a.proj": linear()})
    lora.save(plain, tmp_path / "plain")
    row = next(line for line in shown.splitlines() if line.startswith("a.proj"))
    assert row in told(capsys, tmp_path / "plain").splitlines()


@pytest.mark.parametrize("format", ["safetensors", "kohya", "diffusers", "loralib"])
def test_every_format_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    adapter = of_layers({"unet.conv_in": linear()})
    path = tmp_path / ("a.pt" if format == "loralib" else "a.safetensors")
    lora.save(adapter, path, format)
    assert json.loads(told(capsys, path, "--json"))["format"] == format
    assert "unet.conv_in" in told(capsys, path)


def test_a_file_with_names_of_its_own_is_read_by_a_key_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora.save(of_layers({"a.proj": linear()}), tmp_path / "own.safetensors", keys=lambda name: "mine/" + name)
    assert "--keys" in refused(capsys, tmp_path / "own.safetensors")
    (tmp_path / "keys.json").write_text('{"mine/(.*)": "\\\\1"}')
    assert "a.proj" in told(capsys, tmp_path / "own.safetensors", "--keys", tmp_path / "keys.json")


# --- checkpoints of loralib 0.1 -------------------------------------------------------------------------------------


def norms(said: str) -> dict[str, float]:
    return {name: layer["norm"] for name, layer in json.loads(said)["layers"].items()}


def test_a_file_that_does_not_say_alpha_is_told_with_alpha_r_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    path = data("adapters", "loralib-roberta-base-mnli")
    assert re.search(r"lora_alpha +not in the file: .* lora_alpha = r", told(capsys, path))
    assert "not in the file" not in told(capsys, path, "--lora-alpha", 16)
    silent, given_16 = told(capsys, path, "--json"), told(capsys, path, "--lora-alpha", 16, "--json")
    assert (json.loads(silent)["lora_alpha_is_known"], json.loads(given_16)["lora_alpha_is_known"]) == (False, True)
    assert norms(given_16) == pytest.approx({name: 2 * norm for name, norm in norms(silent).items()})
    exact = lora.load(path, config=lora.LoRAConfig(lora_alpha=16))
    assert norms(given_16) == pytest.approx({name: float(u.delta().double().norm()) for name, u in exact.layers.items()})


def test_fused_projections_of_such_a_file_need_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"attn.lora_A": tensor((4, 6), torch.float32, 0), "attn.lora_B": tensor((8, 2), torch.float32, 1)}
    torch.save(state, tmp_path / "fused.pt")
    assert "--enable-lora true,false,true" in refused(capsys, tmp_path / "fused.pt")
    (layer,) = json.loads(told(capsys, tmp_path / "fused.pt", "--enable-lora", "true,false,true", "--json"))["layers"].values()
    assert (layer["r"], layer["lora_alpha"], layer["enable_lora"]) == (2, 2, [True, False, True])
    assert "true,false,true" in refused(capsys, tmp_path / "fused.pt", "--enable-lora", "yes")


@pytest.mark.parametrize("words", [["--lora-alpha", "16"], ["--enable-lora", "true,true"]])
def test_what_the_file_says_itself_cannot_be_said_again(
    deep: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert words[0] in refused(capsys, deep, *words)


# --- what cannot be told --------------------------------------------------------------------------------------------


def test_broken_and_unknown_files_are_one_sentence(deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no adapter" in refused(capsys, tmp_path / "empty")
    file = deep / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "adapter_model.safetensors" in refused(capsys, deep)
    (tmp_path / "text.pt").write_text("hello")
    refused(capsys, tmp_path / "text.pt")
    assert "PATH" in refused(capsys)


def test_factors_that_are_not_finite_are_named_and_json_stays_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {f"layers.{i}.proj": linear(seed=i) for i in range(40)}
    layers["layers.33.proj"] = replace(linear(), A=torch.full((4, 12), float("nan")))
    lora.save(of_layers(layers), tmp_path / "diverged")
    shown = told(capsys, tmp_path / "diverged")
    assert re.search(r"unusable +1 of 40: layers\.33\.proj: its lora_A\s+holds\s+48 numbers that\s+are\s+not\s+finite", shown)
    assert "nan" not in shown
    said = json.loads(told(capsys, tmp_path / "diverged", "--json"), parse_constant=pytest.fail)
    assert said["layers"]["layers.33.proj"]["singular_values"] is None
    assert said["unusable"] == {"layers.33.proj": "its lora_A holds 48 numbers that are not finite, of 48"}


def test_an_update_that_is_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora.save(of_layers({"proj": replace(linear(), B=torch.zeros(10, 4))}), tmp_path / "fresh")
    assert re.search(r"^proj +4 +0\.000 +0 +zero$", told(capsys, tmp_path / "fresh"), re.M)


def test_an_adapter_of_no_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = lora.Adapter(lora.LoRAConfig(), {}, {"head.bias": torch.ones(2)})
    lora.save(empty, tmp_path / "a.safetensors", "safetensors")
    assert "2 in extra tensors" in told(capsys, tmp_path / "a.safetensors")
    assert json.loads(told(capsys, tmp_path / "a.safetensors", "--json"))["layers"] == {}


# --- how it looks ---------------------------------------------------------------------------------------------------


def test_layers_stand_in_groups_in_their_natural_order(deep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, deep, "--all").splitlines()
    start = lines.index("model.layers.*.k_proj (12 layers)") + 1
    assert [line.split()[0] for line in lines[start : start + 12]] == [str(i) for i in range(12)]
    assert sum(line.startswith("model.layers.*.") for line in lines) == 3


def test_what_is_left_out_is_counted(deep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, deep)
    rows = len(re.findall(r"^  \d+ ", shown, re.M))
    hidden = [int(number) for number in re.findall(r"… and (\d+) more", shown)]
    assert rows + sum(hidden) == 36
    assert hidden
    assert "--all" in shown
    assert "more" not in told(capsys, deep, "--all")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["distilbert-imdb", "gpt2-anirudh", "sd15-lora-r4"])
def test_real_adapters_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, name: str
) -> None:
    path = data("adapters", name)
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ((), ("--all",)):
        assert max(map(len, told(capsys, path, *words).splitlines())) <= columns


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100), st.integers(1, 60))
def test_a_picture_falls_from_the_full_block(values: list[float], columns: int) -> None:
    values.sort(reverse=True)
    heights = [BLOCKS.index(char) for char in sparkline(values, columns)]
    assert len(heights) == min(len(values), columns)
    assert heights == sorted(heights, reverse=True)
    if values[0] > 0 and len(values) <= columns:
        assert heights[0] == len(BLOCKS) - 1
        assert all(height == 0 for value, height in zip(values, heights, strict=True) if value <= values[0] / 100)


@pytest.mark.slow
def test_ascii_where_there_is_nothing_else_and_no_broken_pipe(deep: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "loralib", "info", str(deep)]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    shown = done.stdout.decode("ascii")
    assert "||dW||" in shown
    assert re.search(r"#[.:\-=+*%#]{3}$", shown, re.M)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_the_terminal_obeys_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {"a\x1b[31m.proj": linear(), "b.proj": linear()}
    adapter = of_layers(layers, metadata={"base_model_name_or_path": "x\x07", "k\x1b": "v\n\x1b"})
    lora.save(adapter, tmp_path / "a.safetensors", "safetensors")
    shown = told(capsys, tmp_path / "a.safetensors")
    assert not {char for char in shown if not char.isprintable()} - {"\n"}
    assert "\\x1b" in shown
