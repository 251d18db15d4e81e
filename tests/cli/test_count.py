"""`loralib count` prints the exact numbers, with the paper's."""

import json
from pathlib import Path

import pytest

from loralib.cli import main

pytest_plugins = ["recipes.conftest"]


@pytest.mark.parametrize(
    ("words", "factors", "trained"),
    [
        ("roberta-base --preset paper", 294_912, 887_042),
        ("roberta-base --preset scripts --task mnli", 294_912, 887_811),
        ("FacebookAI/roberta-base --r 8 --task stsb", 294_912, 294_912 + 590_592 + 769),
        ("roberta-large --preset paper --task sst2", 786_432, 1_838_082),
        ("microsoft/deberta-v2-xxlarge --preset scripts", 4_718_592, 4_718_592 + 1536 * 1536 + 1536 + 2 * 1536 + 2),
        ("microsoft/deberta-v2-xxlarge --preset paper", 2_359_296, 2_359_296 + 1536 * 1536 + 1536 + 2 * 1536 + 2),
        ("gpt2", 147_456, 147_456),
        ("gpt2-medium --r 4", 393_216, 393_216),
        ("gpt2-medium --preset paper", 393_216, 393_216),
        ("gpt2-large --preset scripts --task dart", 737_280, 737_280),
        ("gpt2 --layers query", 73_728, 73_728),
        ("gpt2-large", 737_280, 737_280),
        ("roberta-base --r 1 --layers query", 12 * 2 * 768, 12 * 2 * 768 + 592_130),
        ("roberta-base --r 2 --target-modules all-linear", 2 * 12 * (4 * 2 * 768 + 2 * (768 + 3072)), None),
    ],
)
def test_the_numbers_are_exact(words: str, factors: int, trained: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--model", *words.split(), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["lora"] == factors
    assert counts["trained"] == (trained or counts["trained"]) == counts["lora"] + counts["head"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("roberta-base --preset paper", ["294,912", "887,042", "592,130", "0.71", "prints 0.3M"]),
        ("microsoft/deberta-v2-xxlarge --preset scripts", ["4,718,592", "28.3 MB", "prints 4.7M", "Table 10 prints r = 8"]),
        ("gpt2-large", ["737,280", "prints 0.77M", "0.74M"]),
    ],
)
def test_the_papers_figure_stands_beside(words: str, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--model", *words.split()]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in shown)


def test_what_training_keeps_is_counted_for_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["count", "--model", "gpt3", "--r", "4", "--dtype", "fp16"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("fp16 with adamw", "350 GB", "1.4 TB", "75.5 MB", "prints a checkpoint of 35 MB"))
    assert main([*words, "--optim", "adamw_8bit", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)["memory"]
    assert (kept["dtype"], kept["optimizer"]) == ("fp16", "adamw_8bit")
    assert [*kept][2:] == ["lora", "last-layers", "full"]
    for of_method in (kept["lora"], kept["last-layers"], kept["full"]):
        assert of_method["total"] == of_method["weights"] + of_method["gradients"] + of_method["optimizer"]
        assert of_method["optimizer"] < of_method["gradients"] * 1.1


def test_what_all_linear_leaves_out_is_counted_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["count", "--model", "roberta-base", "--target-modules", "all-linear"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    said = "Without LoRA: 3 (Embedding layers are adapted when target_modules names them), 2 (it is in modules_to_save)."
    assert said in printed
    assert main([*words, "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert left_out["classifier.dense"] == left_out["classifier.out_proj"] == "it is in modules_to_save"
    assert main(["count", "--model", "roberta-base"]) == 0
    assert "Without LoRA" not in capsys.readouterr().out


def test_a_local_model_is_counted_as_it_is(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--model", str(encoder), "--r", "4", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["lora"], counts["head"], counts["paper"]) == (2 * 2 * 2 * 32 * 4, 66, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("no/such-model", "cannot be had"),
        ("bert-base --preset paper", "is none of them"),
        ("gpt2 --task mrpc", "gpt2 generates text; leave --task out, or give one of e2e"),
        ("roberta-base --task e2e", "roberta-base generates no text"),
        ("roberta-base --r 0", "r=0"),
        ("roberta-base --layers query --target-modules key", "has no effect with target_modules"),
        ("roberta-base --task sst3", "nearest: sst2"),
    ],
)
def test_wrong_words_are_one_sentence(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--model", *words.split()]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
