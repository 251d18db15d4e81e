"""`loralib combine`: sums of adapters, and what cannot be added."""

import pytest
import torch

import loralib as lora
from cli.conftest import adapter, complaint, said


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
    assert "different base models: one, two" in text
    a, b, found = (lora.load(path) for path in (*two, tmp_path / "out"))
    assert torch.allclose(found.delta("l0.proj"), 0.75 * a.delta("l0.proj") - 0.5 * b.delta("l0.proj"), atol=1e-5)


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
