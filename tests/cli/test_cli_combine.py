"""`loralib combine`: sums of adapters, and what cannot be added."""

import json

import pytest
import torch

import loralib as lora
from cli.conftest import adapter, complaint, said
from loralib.cli import main


@pytest.fixture
def two(tmp_path):
    lora.save(adapter(0, 1.0, base_model_name_or_path="one"), tmp_path / "a")
    lora.save(adapter(1, 3.0, base_model_name_or_path="two"), tmp_path / "b.safetensors", format="safetensors")
    return tmp_path / "a", tmp_path / "b.safetensors"


def test_a_weighted_sum_is_written_and_reported(two, tmp_path, capsys):
    text = said(capsys, "combine", *two, "--weights", "0.75", "-0.5", "--tensors", "first", "-o", tmp_path / "out")
    assert "0.75 * PEFT folder a: 2 layers, r=3" in text
    assert "-0.5 * one-file adapter b.safetensors" in text
    assert "2 layers, r=6" in text
    a, b, found = (lora.load(path) for path in (*two, tmp_path / "out"))
    assert torch.allclose(found.delta("l0.proj"), 0.75 * a.delta("l0.proj") - 0.5 * b.delta("l0.proj"), atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ("one", "two", True),
        ("FacebookAI/roberta-base", "roberta-large", True),
        ("FacebookAI/roberta-base", "roberta-base", False),
        ("FacebookAI/roberta-base", "/data/models/RoBERTa-base/", False),
        ("org/net", "/hub/models--org--net/snapshots/0a1b", False),
        ("/hub/models--org--net/snapshots/0a1b", "/hub/models--org--web/snapshots/0a1b", True),
        ("one", None, False),
        ("one", "o\x1b[31mne", True),
    ],
)
def test_different_base_models_are_named_in_a_warning(first, second, differ, tmp_path, capsys):
    for name, base in (("a", first), ("b", second)):
        lora.save(adapter(0, **({"base_model_name_or_path": base} if base else {})), tmp_path / name)
    assert main(["combine", *map(str, (tmp_path / "a", tmp_path / "b")), "--json", "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["layers"] == 2
    lines = [line for line in err.splitlines() if "warning" in line]
    shown = second and second.replace("\x1b", r"\x1b")
    expected = f"loralib: warning: the adapters are for different base models: {first} (a) and {shown} (b)"
    assert [line[: len(expected)] for line in lines] == ([expected] if differ else [])


def test_a_lower_rank_tells_what_it_keeps(two, tmp_path, capsys):
    text = said(capsys, "combine", *two, "--method", "svd", "--r", "2", "--tensors", "drop", "-o", tmp_path / "out")
    found = lora.load(tmp_path / "out")
    exact = lora.combine([lora.load(path) for path in two], tensors="drop")
    share = sum(float(found.delta(n).square().sum()) for n in found.layers)
    share /= sum(float(exact.delta(n).square().sum()) for n in exact.layers)
    assert f"{share:.2%} of the exact sum's" in text
    assert found.config.r == 2


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude", "dare_ties"])
def test_pruning_from_the_command_line(method, two, tmp_path, capsys):
    words = ("--method", method, "--density", "0.5", "--seed", "3", "--tensors", "average", "--weights", "0.5", "0.5")
    said(capsys, "combine", *two, *words, "-o", tmp_path / "out.safetensors", "--format", "safetensors")
    expected = lora.combine([lora.load(p) for p in two], [0.5, 0.5], method, density=0.5, seed=3, tensors="average")
    assert lora.load(tmp_path / "out.safetensors") == expected


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["--weights", "1"], "1 for 2 adapters"),
        ([], "'head.weight' was trained in full"),
        (["--r", "2", "--tensors", "drop"], "svd"),
        (["--method", "ties", "--tensors", "drop"], "density"),
        (["--method", "average"], "'average' is not one of"),
        (["--format", "kohya", "--tensors", "drop"], ".safetensors"),
    ],
)
def test_what_cannot_be_combined_is_said(words, telling, two, tmp_path, capsys):
    assert telling in complaint(capsys, "combine", *two, *words, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
