"""Words that a command does not take: one sentence that names what was meant."""

from pathlib import Path

import pytest

from loralib.cli import COMMANDS, main
from loralib.cli.wording import OTHER_NAMES, nearest_option

TRAIN = ["train", "--model", "m", "--data", "d.tsv"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("loralib: ")
    assert shown.err.count("\n") == 1
    for machine in ("Union", "typing.", "<class", "NoneType", "Traceback", "jsonargparse", "Parser key"):
        assert machine not in shown.err
    return shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "1e-3"], "train has no option --learning_rate; nearest: --learning-rate"),
        (["--lr=1e-3"], "no option --lr; nearest: --learning-rate"),
        (["--lora-r", "8"], "no option --lora-r; nearest: --r;"),
        (["--lora_alpha", "8"], "nearest: --lora-alpha"),
        (["--epochs", "3"], "nearest: --num-train-epochs"),
        (["--batch_size", "3"], "nearest: --batch-size"),
        (["--per_device_train_batch_size", "3"], "nearest: --batch-size"),
        (["--output_dir", "x"], "nearest: --output"),
        (["--model_name_or_path", "x"], "nearest: --model"),
        (["--force"], "nearest: --overwrite"),
        (["--print_config"], "nearest: --dry-run"),
        (["--xyzzy"], "train has no option --xyzzy; see loralib train --help-all."),
        (["extra"], "train does not take the argument 'extra'"),
        (["--r", "x"], "--r: 'x' is not a whole number"),
        (["--learning-rate", "abc"], "--learning-rate: 'abc' is not a number, or auto"),
        (["--bf16", "maybe"], "--bf16: 'maybe' is not true or false"),
        (
            ["--problem", "regresion"],
            "is not one of classification, regression, generation, chat, preference; nearest: regression",
        ),
        (["--rank-pattern", "3"], "--rank-pattern: '3' is not {name or regular expression: a whole number}"),
        (["--enable-lora", "x"], "--enable-lora: 'x' is not a list such as [true, false, true]"),
        (["--seeds", "x"], "--seeds: 'x' is not a whole number"),
        (["--config", "none.yaml"], "--config none.yaml does not exist"),
        (["--output"], "--output: a value is missing"),
    ],
)
def test_train_names_the_option_and_what_it_takes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, *TRAIN, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran"], "'tran' is not one of train, compare,"),
        (["tran"], "nearest: train"),
        ([], "the first argument must be a command"),
        (["--verbose", "train"], "the first argument must be a command"),
        (["info"], "PATH is missing"),
        (["info", "a", "b"], "info does not take the argument 'b'"),
        (["info", "a", "--jsn"], "info has no option --jsn; nearest: --json"),
        (["convert", "a", "-o"], "--output: a value is missing"),
        (["combine", "a", "b", "-o", "c", "--r", "x"], "--r: 'x' is not a whole number"),
        (["count", "--model", "x", "--preset", "papr"], "nearest: paper"),
        (["score", "blue", "x"], "TASK: 'blue' is not one of e2e, webnlg, dart, any"),
        (["merge", "a", "b", "-o", "c", "--thread", "3"], "merge has no option --thread; nearest: --threads"),
        (["info", "a", "--xyzzy"], "info has no option --xyzzy; see loralib info --help."),
        (["info", "a", "--json=yes"], "--json takes no value; leave out 'yes'"),
    ],
)
def test_other_commands_do_too(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, *words)


def test_a_mistake_in_a_file_of_options_is_named_like_one_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    for content, message in (
        ("learning_rate: fast\n", "--learning-rate: 'fast' is not a number, or auto"),
        ("lora:\n  r: many\n", "--r: 'many' is not a whole number"),
        ("method: loar\n", "--method: 'loar' is not one of lora, last-layers, full, bitfit, prefix; nearest: lora"),
    ):
        file.write_text(content)
        assert message in said(capsys, *TRAIN, "--config", str(file))


def test_other_names_lead_to_options_that_exist() -> None:
    """Of any command, from its help; and no other name is an option itself."""
    known: set[str] = set()
    for command in COMMANDS:
        from loralib.cli import completion

        known |= set(completion.options_of(command))
    assert {f"--{ours}" for ours in OTHER_NAMES.values()} <= known
    assert nearest_option("--xyz", sorted(known)) is None
