"""Numbers that are of no use are refused in one sentence that names the tensor, by every command that reads an adapter."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import loralib as lora
from loralib.cli import main


def adapter(
    A: Tensor | None = None,
    B: Tensor | None = None,
    lora_alpha: float = 4,
    magnitude: Tensor | None = None,
    head: Tensor | None = None,
    rows: Tensor | None = None,
) -> lora.Adapter:
    A, B = torch.ones(2, 4) if A is None else A, torch.ones(3, 2) if B is None else B
    update = lora.LoRAUpdate(A, B, lora_alpha, magnitude=magnitude)
    tensors = {"head.weight": torch.ones(2, 3) if head is None else head}
    held = {} if rows is None else {"tokens.weight": lora.TokenRows((1,), rows)}
    return lora.Adapter(lora.LoRAConfig(r=2, modules_to_save=["head"]), {"proj": update}, tensors, rows=held)


CASES = {
    "nan in A": (lambda: adapter(A=torch.full((2, 4), torch.nan)), "'proj'", "lora_A"),
    "infinity in B": (lambda: adapter(B=torch.full((3, 2), torch.inf)), "'proj'", "lora_B"),
    "nan in a magnitude": (lambda: adapter(magnitude=torch.tensor([1, torch.nan, 1])), "'proj'", "lora_magnitude"),
    "nan in a head": (lambda: adapter(head=torch.full((2, 3), torch.nan)), "'head.weight'", "not finite"),
    "nan in rows": (lambda: adapter(rows=torch.full((1, 4), torch.nan)), "'tokens.weight'", "not finite"),
    "alpha too large": (lambda: adapter(lora_alpha=1e308), "'proj'", "lora_alpha=1e+308"),
    "alpha too small": (lambda: adapter(lora_alpha=1e-300), "'proj'", "lora_alpha=1e-300"),
    "a product too large": (lambda: adapter(torch.full((2, 4), 1e30), torch.full((3, 2), 1e30)), "'proj'", "cannot hold"),
    "A without width": (lambda: adapter(A=torch.zeros(2, 0)), "'proj'", "lora_A holds no numbers"),
    "B without width": (lambda: adapter(B=torch.zeros(0, 2)), "'proj'", "lora_B holds no numbers"),
}
COMMANDS = {
    "convert": ("convert", "A", "-o", "out.safetensors", "--format", "safetensors"),
    "convert, truncated": ("convert", "A", "-o", "out.safetensors", "--format", "safetensors", "--r", "1"),
    "combine": ("combine", "A", "good", "-o", "out", "--tensors", "first"),
    "combine, svd": ("combine", "A", "good", "-o", "out", "--method", "svd", "--tensors", "drop"),
    "combine, ties": ("combine", "good", "A", "-o", "out", "--method", "ties", "--density", "0.5", "--tensors", "drop"),
    "merge": ("merge", "base", "A", "-o", "out"),
    "analyze": ("analyze", "A", "good", "-o", "out"),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """In a folder with a base, a good adapter and `A`, one that is not; the words that tell why."""
    monkeypatch.chdir(tmp_path)
    build, name, why = CASES[request.param]
    (tmp_path / "base").mkdir()
    tensors = {"proj.weight": torch.ones(3, 4), "head.weight": torch.ones(2, 3), "tokens.weight": torch.ones(3, 4)}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    lora.save(adapter(), tmp_path / "good")
    lora.save(build(), tmp_path / "A")
    return name, why


def test_every_command_that_writes_refuses_it_and_writes_nothing(
    case: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in COMMANDS.values():
        assert main(list(words)) == 2, words
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(part in said for part in ("loralib: A: ", *case, "Nothing was written")), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "base", "good"]


def test_info_tells_it_and_its_json_stays_json(case: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    name, why = case
    assert main(["info", "A"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "unusable 1 of" in shown
    assert why in shown
    assert main(["info", "A", "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert why in said["unusable"][name.strip("'")]


def test_weights_that_make_a_sum_too_large_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora.save(adapter(), tmp_path / "a")
    for how in (["--method", "exact"], ["--method", "svd"], ["--method", "ties", "--density", "0.5"]):
        words = ["combine", str(tmp_path / "a"), str(tmp_path / "a"), "--weights", "1e308", "1", "-o", str(tmp_path / "out")]
        assert main([*words, *how]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "proj" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_numbers_near_the_end_of_float32_are_not_refused(tmp_path: Path) -> None:
    large = adapter(torch.full((2, 4), 1e18), torch.full((3, 2), 1e18), lora_alpha=2)
    lora.save(large, tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), "-o", str(tmp_path / "b.safetensors"), "--format", "safetensors"]) == 0
