"""`loralib convert`: the same updates in another format, what was asked for on the way, and nothing written otherwise."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import loralib as lora
from loralib import formats
from loralib.cli import convert, files, main
from models import close
from peers import data
from sample_adapters import adapters, tensor

SUFFIX = {"peft": "", "diffusers": "", "safetensors": ".safetensors", "kohya": ".safetensors", "loralib": ".pt"}


def linear(r: int = 4, seed: int = 0, d: int = 12, k: int = 10) -> lora.LoRAUpdate:
    return lora.LoRAUpdate(tensor((r, d), torch.float32, seed), tensor((k, r), torch.float32, seed + 1), 2 * r)


def unet(**more: Any) -> lora.Adapter:
    """An adapter that every format can hold, unless `more` is added."""
    layers = {f"unet.mid_block.attentions.{i}.proj_in": linear(seed=i) for i in range(3)}
    return lora.Adapter(lora.LoRAConfig(), layers, **more)


@pytest.fixture
def peft(tmp_path: Path) -> Path:
    """The same, saved as PEFT's folder."""
    lora.save(unet(), tmp_path / "peft")
    return tmp_path / "peft"


def converted(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["convert", *map(str, words)]) == 0
    return capsys.readouterr().out


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: object) -> str:
    """What is said of words that must not work; `folder` stays as it is."""
    before = tree(folder)
    capsys.readouterr()
    assert main(["convert", *map(str, words)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("loralib: ")
    assert shown.count("\n") == 1
    assert tree(folder) == before
    return shown


def same_updates(a: lora.Adapter, b: lora.Adapter) -> bool:
    return a.layers.keys() == b.layers.keys() and all(close(b.delta(n), a.delta(n), factor=8) for n in a.layers)


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SUFFIX)
@pytest.mark.parametrize("target", SUFFIX)
def test_every_format_becomes_every_other(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str) -> None:
    before, after = tmp_path / f"before{SUFFIX[source]}", tmp_path / "new" / "folder" / f"after{SUFFIX[target]}"
    lora.save(unet(), before, source)
    alpha = ["--lora-alpha", "8"] if source == "loralib" else []
    said = converted(capsys, before, "-o", after, "--format", target, *alpha)
    found = lora.load(after, config=lora.LoRAConfig(lora_alpha=8) if target == "loralib" else None)
    assert all(found.layers[name] == update for name, update in unet().layers.items())
    assert formats.detect(after) == target
    written = {str(path): path.stat().st_size for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert {f"{name} ({size:,} bytes)" for name, size in written.items()} == set(re.findall(r"\S+ \([\d,]+ bytes\)", said))
    assert f"Read {lora.load(before, config=lora.LoRAConfig(lora_alpha=8)).source}: 3 layers, r=4" in said


@settings(max_examples=15)
@given(adapter=adapters(), format=st.sampled_from(["safetensors", "peft", "loralib", "kohya", "diffusers"]))
def test_what_is_written_is_the_same_adapter_and_what_cannot_be_is_not_written(
    adapter: lora.Adapter, format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source, output = folder / "a.safetensors", folder / f"b{SUFFIX[format]}"
    lora.save(adapter, source, "safetensors")
    code = main(["convert", str(source), "-o", str(output), "--format", format])
    assert output.exists() == (code == 0)
    if format == "safetensors":
        assert lora.load(output) == adapter
    elif code == 0 and format == "peft":
        assert same_updates(adapter, lora.load(output))
    else:
        assert code in (0, 2)


def test_the_formats_that_can_be_chosen_are_those_that_there_are() -> None:
    assert tuple(formats.FORMATS) == files.FORMATS


@pytest.mark.parametrize("kind", convert.EXTRAS)
@pytest.mark.parametrize("format", [*SUFFIX, None])
def test_what_a_format_has_no_place_for_is_refused_with_the_option_that_leaves_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str | None, kind: str
) -> None:
    extra: dict[str, Any] = {
        "tensors": {"head.weight": torch.ones(2)},
        "rows": {"emb.weight": lora.TokenRows((1, 3), torch.ones(2, 4))},
        "metadata": {"task_type": "SEQ_CLS"},
    }
    adapter = unet(**{kind: extra[kind]})
    lora.save(adapter, tmp_path / "a.safetensors", "safetensors")
    (tmp_path / "keys.json").write_text('{"(.*)": "\\\\1"}')
    how = ["--format", format] if format else ["--out-keys", tmp_path / "keys.json"]
    words = [tmp_path / "a.safetensors", "-o", tmp_path / f"b{SUFFIX[format] if format else '.safetensors'}", *how]
    try:
        keys = None if format else (lambda name: name)
        lora.save(adapter, tmp_path / "direct.safetensors", format or "peft", keys=keys)
    except lora.FormatError:
        assert f"--without {kind}" in refused(capsys, tmp_path, *words)
        assert "Left out: " in converted(capsys, *words, "--without", kind)
    else:
        said = converted(capsys, *words)
        if kind == "metadata" and format in ("loralib", None):
            assert "task_type" in said


# --- words that cannot work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["safetensors", "peft"])
def test_nothing_is_overwritten_unasked(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    output = tmp_path / f"out{SUFFIX[format]}"
    words = [peft, "-o", output, "--format", format]
    converted(capsys, *words)
    assert "--overwrite" in refused(capsys, tmp_path, *words, "--r", 1)
    converted(capsys, *words, "--r", 1, "--overwrite")
    assert {update.r for update in lora.load(output).layers.values()} == {1}


def test_nothing_is_written_onto_what_is_read(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(peft)
    file = tmp_path / "a.safetensors"
    lora.save(unet(), file, "safetensors")
    for words in (
        [peft, "-o", peft, "--format", "peft"],
        [peft / "adapter_model.safetensors", "-o", peft, "--format", "peft"],
        [peft, "-o", tmp_path / "link", "--format", "peft"],
        [peft, "-o", peft, "--format", "diffusers"],
        [peft, "-o", peft / "adapter_model.safetensors", "--format", "kohya"],
        [file, "-o", tmp_path / "x" / ".." / "a.safetensors", "--format", "kohya"],
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "what is read" in refused(capsys, tmp_path, *words, "--overwrite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "peft", "-o", "{}/a.safetensors"], "folder"),
        (["--format", "safetensors", "-o", "{}/a"], ".safetensors"),
        (["--format", "safetensors", "-o", "{}"], "folder"),
        (["--format", "loralib", "-o", "{}/a.safetensors"], ".pt"),
        (["--format", "pfet", "-o", "{}/a"], "nearest: peft"),
        (["-o", "{}/a"], "--format"),
        (["--format", "peft"], "--output"),
        (["--format", "peft", "-o", "{}/a", "--r", "0"], "r=0"),
        (["--format", "peft", "-o", "{}/a", "--energy", "99"], "energy=99"),
        (["--format", "peft", "-o", "{}/a", "--rename", "unet"], "OLD=NEW"),
        (["--format", "peft", "-o", "{}/a", "--rename", "unit=x"], "unit"),
        (["--format", "peft", "-o", "{}/a", "--rename", "unet=x", "--rename", "unet=y"], "two names"),
        (["--format", "peft", "-o", "{}/a", "--part", "text_encoder"], "part: 'text_encoder' fits nothing in the adapter"),
        (["--format", "peft", "-o", "{}/a", "--from", "kohya"], "safetensors"),
        (["--format", "peft", "-o", "{}/a", "--lora-alpha", "4"], "says its own"),
        (["--format", "peft", "-o", "{}/a", "--reduce-intruders", "0.5"], "--base"),
        (["--format", "diffusers", "-o", "{}/a", "--part", "unet"], "--rename =unet"),
        (["--out-keys", "{}/none.json", "-o", "{}/a.safetensors"], "none.json"),
        (["--out-keys", "{}/none.json", "--format", "peft", "-o", "{}/a"], "one of them"),
    ],
)
def test_wrong_words_are_one_sentence_and_nothing_is_written(
    peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in refused(capsys, tmp_path, peft, *(word.format(tmp_path) for word in words))


def test_a_folder_that_was_made_goes_again_where_it_fails(
    peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora.save(unet(metadata={"hash": "1"}), tmp_path / "a.safetensors", "safetensors")
    assert "hash" in refused(
        capsys, tmp_path, tmp_path / "a.safetensors", "-o", tmp_path / "new" / "er" / "b", "--format", "peft"
    )


def test_a_checkpoint_of_0_1_needs_its_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data("adapters", "loralib-roberta-base-mnli")
    words = [source, "-o", tmp_path / "mnli", "--format", "peft"]
    assert "--lora-alpha" in refused(capsys, tmp_path, *words)
    converted(capsys, *words, "--lora-alpha", 16)
    exact = lora.load(source, config=lora.LoRAConfig(lora_alpha=16))
    found = lora.load(tmp_path / "mnli")
    assert found.layers == exact.layers
    assert found.tensors.keys() == exact.tensors.keys()
    said = converted(capsys, tmp_path / "mnli", "-o", tmp_path / "again.pt", "--format", "loralib")
    assert "lora_alpha (16)" in said
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    original = torch.load(source / "roberta_base_lora_mnli.bin", weights_only=True, map_location="cpu")
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)


@pytest.mark.parametrize("widths", [(4, 4, 4), (5, 3, 3), (4, 3, 4)])
def test_slices_of_unequal_width_are_nothing_that_0_1_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], widths: tuple[int, ...]
) -> None:
    B = tensor((widths[0] + widths[2], 2), torch.float32, 1)
    update = lora.FusedUpdate(tensor((4, 6), torch.float32, 0), B, 4, enable_lora=(True, False, True), widths=widths)
    adapter = lora.Adapter(lora.LoRAConfig(), {"a": update})
    lora.save(adapter, tmp_path / "a.safetensors", "safetensors")
    words = [tmp_path / "a.safetensors", "-o", tmp_path / "a.pt", "--format", "loralib"]
    if len(set(widths)) > 1:
        assert "unequal width" in refused(capsys, tmp_path, *words)
    else:
        converted(capsys, *words)
        config = lora.LoRAConfig(lora_alpha=4, enable_lora=[True, False, True])
        assert lora.load(tmp_path / "a.pt", config=config).layers == adapter.layers


def test_factors_that_are_not_finite_are_not_truncated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    update = replace(linear(), A=torch.full((4, 12), float("inf")))
    lora.save(lora.Adapter(lora.LoRAConfig(), {"a.proj": update}), tmp_path / "a")
    said = refused(capsys, tmp_path, tmp_path / "a", "-o", tmp_path / "b", "--format", "peft", "--r", 1)
    assert "a.proj" in said
    assert "not finite" in said


# --- changes on the way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--r", "2"], ["--energy", "0.9"], ["--r", "3", "--energy", "0.8"]])
def test_what_truncation_keeps_is_said(
    peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    said = converted(capsys, peft, "-o", tmp_path / "cut", "--format", "peft", *words)
    cut = lora.load(tmp_path / "cut")
    before, after = (
        {name: float(adapter.delta(name).double().square().sum()) for name in adapter.layers} for adapter in (unet(), cut)
    )
    share, worst = map(float, re.findall(r"([\d.]+) %", said))
    assert share == pytest.approx(100 * sum(after.values()) / sum(before.values()), abs=0.006)
    assert worst == pytest.approx(100 * min(after[name] / before[name] for name in before), abs=0.006)
    for name, update in unet().layers.items():
        values = torch.linalg.svdvals(update.delta().double())[: cut.layers[name].r]
        assert torch.allclose(torch.linalg.svdvals(cut.delta(name).double())[: len(values)], values, rtol=1e-5)


def test_truncation_that_changes_nothing_says_so(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no layer" in converted(capsys, peft, "-o", tmp_path / "cut", "--format", "peft", "--r", 9)
    assert lora.load(tmp_path / "cut") == lora.load(peft)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_says_the_largest_error(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    said = converted(capsys, peft, "-o", tmp_path / "low", "--format", "peft", "--dtype", dtype)
    exact = load_file(peft / "adapter_model.safetensors")
    low = load_file(tmp_path / "low" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in low.values()} == {getattr(torch, dtype)}
    errors = {name: float((low[name].double() - exact[name].double()).norm() / exact[name].double().norm()) for name in low}
    assert f"{max(errors.values()):.1e}" in said
    assert "exactly" in converted(capsys, tmp_path / "low", "-o", tmp_path / "wide", "--format", "peft", "--dtype", "float32")


def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    update = lora.LoRAUpdate(torch.full((1, 2), 1e6), torch.ones(3, 1), 1)
    lora.save(lora.Adapter(lora.LoRAConfig(), {"proj": update}), tmp_path / "big")
    words = [tmp_path / "big", "-o", tmp_path / "b", "--format", "peft", "--dtype"]
    assert "proj.lora_A" in refused(capsys, tmp_path, *words, "float16")
    converted(capsys, *words, "bfloat16")


def test_parts_and_names(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(capsys, peft, "-o", tmp_path / "inner", "--format", "peft", "--part", "unet")
    inner = lora.load(tmp_path / "inner")
    assert set(inner.layers) == {f"mid_block.attentions.{i}.proj_in" for i in range(3)}
    rename = ["--rename", "=unet", "--rename", "mid_block.attentions.1=unet.other"]
    converted(capsys, tmp_path / "inner", "-o", tmp_path / "outer", "--format", "peft", *rename)
    assert "unet.other.proj_in" in lora.load(tmp_path / "outer").layers
    back = ["--rename", "unet.other=mid_block.attentions.1", "--rename", "unet="]
    converted(capsys, tmp_path / "outer", "-o", tmp_path / "back", "--format", "peft", *back)
    assert lora.load(tmp_path / "back").layers == inner.layers


def test_a_head_that_is_left_out_is_left_out_of_the_configuration_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [data("adapters", "distilbert-imdb"), "-o", tmp_path / "bare", "--format", "peft", "--without", "tensors"]
    converted(capsys, *words)
    bare = lora.load(tmp_path / "bare")
    assert (dict(bare.tensors), bare.config.modules_to_save) == ({}, ())
    assert bare.metadata["task_type"] == "SEQ_CLS"


def test_key_maps_in_and_out(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "out.json", tmp_path / "in.json"
    out.write_text(json.dumps({r"unet\.(.*)\.lora_A": r"\1.down", r"unet\.(.*)\.lora_B": r"\1.up", r"unet\.(.*)": r"\1"}))
    back.write_text(json.dumps({r"(.*)\.down": r"unet.\1.lora_A", r"(.*)\.up": r"unet.\1.lora_B", r"(.*)": r"unet.\1"}))
    own = tmp_path / "own.safetensors"
    converted(capsys, peft, "-o", own, "--out-keys", out)
    assert {name.rpartition(".")[2] for name in load_file(own)} == {"down", "up", "alpha"}
    converted(capsys, own, "-o", tmp_path / "again", "--format", "peft", "--keys", back)
    assert lora.load(tmp_path / "again").layers == unet().layers
    back.write_text('{"a": 1}')
    assert "key map" in refused(capsys, tmp_path, own, "-o", tmp_path / "b", "--format", "peft", "--keys", back)


def test_intruders_are_reduced_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    W = torch.diag(torch.tensor([3.0, 2, 1, 1, 0, 0, 0, 0]))
    save_file({"a.weight": W, "b.weight": W.clone()}, tmp_path / "model.safetensors")
    strange = lora.LoRAUpdate(torch.eye(1, 8), 9 * torch.eye(8)[:, 7:], lora_alpha=1)
    familiar = lora.LoRAUpdate(torch.eye(1, 8), torch.eye(8)[:, :1], lora_alpha=1)
    adapter = lora.Adapter(lora.LoRAConfig(), {"a": strange, "b": familiar})
    lora.save(adapter, tmp_path / "a")
    words = [tmp_path / "a", "-o", tmp_path / "b", "--format", "peft", "--reduce-intruders", 0, "--base", tmp_path]
    said = converted(capsys, *words)
    assert "1 intruder dimensions in 1 of 2 layers" in said
    found = lora.load(tmp_path / "b")
    assert found.layers["b"] == familiar
    assert lora.intruder_dimensions(found, tmp_path)["a"] == ()
    capsys.readouterr()
    assert main(["info", str(tmp_path / "a"), "--base", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^a +1 +9\.000 +1 +1  █$", shown, re.M)
    assert re.search(r"^b +1 +1\.000 +1 +0  █$", shown, re.M)
    assert main(["info", str(tmp_path / "a"), "--base", str(tmp_path), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [intruder["index"] for intruder in layers["a"]["intruders"]] == [0]


def test_formats_that_are_only_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    A, B = torch.randn(2, 6), torch.randn(4, 2)
    save_file({"a.q_proj.lora_A.default.weight": A, "a.q_proj.lora_B.default.weight": B}, tmp_path / "lone.safetensors")
    (tmp_path / "mlx").mkdir()
    mlx = {"a.q_proj.lora_a": A.t().contiguous(), "a.q_proj.lora_b": B.t().contiguous()}
    save_file(mlx, tmp_path / "mlx" / "adapters.safetensors")
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": 3.0}}))
    lone = ["convert", str(tmp_path / "lone.safetensors"), "--format", "peft", "-o", str(tmp_path / "a")]
    assert main(lone) == 2
    assert "give what the training had: --lora-alpha N." in capsys.readouterr().err
    assert main([*lone, "--lora-alpha", "6"]) == 0
    assert main(["convert", str(tmp_path / "mlx"), "--format", "peft", "-o", str(tmp_path / "b")]) == 0
    assert lora.load(tmp_path / "a") == lora.load(tmp_path / "b")
    assert main(["convert", str(tmp_path / "mlx"), "--format", "mlx", "-o", str(tmp_path / "c")]) == 2
    assert "'mlx' is not one of peft, safetensors" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "lone.safetensors")]) == 0
    assert "give the true one with --lora-alpha" in " ".join(capsys.readouterr().out.split())


# --- experts --------------------------------------------------------------------------------------------------------


def mixture() -> lora.Adapter:
    update = lora.ExpertsUpdate(tensor((3, 2, 6), torch.float32, 1), tensor((3, 8, 2), torch.float32, 2), 4)
    return lora.Adapter(lora.LoRAConfig(), {"m.experts.gate_up_proj": update})


@pytest.mark.parametrize("interleaved", [False, True])
def test_experts_are_taken_apart_and_put_together(tmp_path: Path, capsys: Any, interleaved: bool) -> None:
    lora.save(mixture(), tmp_path / "a")
    how = ["--interleaved"] if interleaved else []
    said = converted(capsys, tmp_path / "a", "-o", tmp_path / "b", "--format", "peft", "--experts", "apart", *how)
    assert "Experts apart now: 6 layers in place of 1." in said
    assert lora.load(tmp_path / "b").layers == lora.split_experts(mixture(), interleaved).layers
    converted(capsys, tmp_path / "b", "-o", tmp_path / "c", "--format", "peft", "--experts", "together", *how)
    found, expected = (a.delta("m.experts.gate_up_proj") for a in (lora.load(tmp_path / "c"), mixture()))
    assert close(found, expected, factor=16)


def test_experts_are_written_in_another_layout_and_read_in_it(tmp_path: Path, capsys: Any) -> None:
    lora.save(mixture(), tmp_path / "a")
    converted(capsys, tmp_path / "a", "-o", tmp_path / "b", "--format", "peft", "--to-layout", "expert-major")
    assert lora.load(tmp_path / "b").layers == mixture().layers
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config.pop("lora_B_layout") == "grouped_by_expert"
    del config["peft_version"]
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(config))
    assert main(["info", str(tmp_path / "b")]) == 2
    assert "say which program wrote it: --layout rank-major" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "b"), "--layout", "expert-major"]) == 0
    assert "gate_up_proj (1 layer)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experts", "together"], "no experts that are apart"),
        (["--interleaved"], "--interleaved says how --experts"),
    ],
)
def test_what_has_no_experts_to_change_is_refused(tmp_path: Path, capsys: Any, words: list[str], message: str) -> None:
    lora.save(mixture(), tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), "-o", str(tmp_path / "b"), "--format", "peft", *words]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
