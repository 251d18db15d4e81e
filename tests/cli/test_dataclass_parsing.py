"""A parser made from a dataclass: its fields are options, words override a file, and what is wrong is one sentence."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from loralib.cli.dataclass_parsing import OptionsParser, dataclass_parser, given
from loralib.errors import ConfigError, RunError
from loralib.recipes.declaring import option


@dataclass(frozen=True)
class Inner:
    r: int = 8
    rank_pattern: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Running:
    title: ClassVar[str] = "run"

    model: str | None = option(None, "NAME", "the model")
    output: str | None = option(None, "DIR", "where to write")
    lora: Inner = field(default=Inner(), metadata={"inner": {"r": ("N", "the rank"), "rank_pattern": ("MAP", "more ranks")}})


@dataclass(frozen=True, kw_only=True)
class Options(Running):
    title: ClassVar[str] = "training"

    seed: int = option(0, "N", "the seed")
    learning_rate: float | None = option(None, "RATE", "the rate")
    bf16: bool = option(False, "", "lower precision")
    best: bool = option(True, "", "keep the best")
    method: Literal["lora", "full"] = option("lora", "", "what is trained")
    layers: Sequence[str] | str | None = option(None, "NAMES", "which layers")


def parser(without: Sequence[str] = ()) -> OptionsParser:
    return dataclass_parser(Options, "loralib toy", without, description="A toy.")


def said(*words: str) -> dict[str, Any]:
    return given(parser(), words)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--model", "m", "--seed", "3"], {"model": "m", "seed": 3}),
        (["-o", "out"], {"output": "out"}),
        (["--learning-rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "false"], {"bf16": False}),
        (["--method", "full"], {"method": "full"}),
        (["--r", "4", "--rank-pattern", "{q: 2}"], {"r": 4, "rank_pattern": {"q": 2}}),
        (["--layers", "query,value"], {"layers": "query,value"}),
        (["--learning-rate", "-1e-3", "--seed", "-2"], {"learning_rate": -1e-3, "seed": -2}),
        (["-o", "null"], {"output": "null"}),
        (["--model", "~", "--layers", "null"], {"model": "~", "layers": "null"}),
    ],
)
def test_words_give_what_they_say_and_nothing_else(words: list[str], values: dict[str, Any]) -> None:
    assert said(*words) == values


def test_words_override_the_file_in_which_inner_options_are_nested(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\nseed: 1\nlora:\n  r: 2\n")
    assert said("--config", str(path)) == {"model": "m", "seed": 1, "r": 2}
    assert said("--config", str(path), "--seed", "5", "--r", "9") == {"model": "m", "seed": 5, "r": 9}
    assert said(f"--config={path}") == {"model": "m", "seed": 1, "r": 2}


def test_null_in_a_file_is_no_value(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: null\noutput: ~\nlearning_rate: null\nlayers: null\nlora:\n  rank_pattern: {}\n")
    none = dict.fromkeys(["model", "output", "learning_rate", "layers"])
    assert said("--config", str(path)) == {**none, "rank_pattern": {}}
    assert said("--config", str(path), "--model", "m") == {**none, "model": "m", "rank_pattern": {}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "x"], "--seed: 'x' is not a whole number"),
        (["--learning-rate", "x"], "--learning-rate: 'x' is not a number"),
        (["--bf16", "maybe"], "--bf16: 'maybe' is not true or false"),
        (["--method", "ful"], "--method: 'ful' is not one of lora, full; nearest: full"),
        (["--r", "x"], "--r: 'x' is not a whole number"),
        (["--seeds", "3"], "toy has no option --seeds; nearest: --seed"),
        (["--mod", "m"], "no option --mod"),
        (["--config", "none.yaml"], "--config none.yaml does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence_in_our_words(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        said(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [\nb", "\x00", "&a [*a]"])
def test_a_file_that_is_not_yaml_is_refused_with_its_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises((ConfigError, RunError), match=r"c\.yaml") as caught:
        said("--config", str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)


def test_an_option_of_an_earlier_version_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: m\nepochs: 3\n")
    with pytest.raises(RunError, match=r"c\.yaml has the option 'epochs', which runs do not have"):
        said("--config", str(tmp_path / "c.yaml"))


def test_the_help_has_groups_defaults_and_choices() -> None:
    shown = parser().format_help()
    for part in (
        "A toy.",
        "run:",
        "training:",
        "the seed (default: 0)",
        "--method {lora,full}",
        "the rank (default: 8)",
        "--seed N ",
    ):
        assert part in shown
    assert re.search(r"--bf16 +lower precision$", shown, re.MULTILINE)
    assert re.search(r"--best \[\{true,false\}\] +keep the best \(default: true\)$", shown, re.MULTILINE)
    assert "the model (default" not in shown
    assert "--layers+" not in shown
    assert "--model" not in parser(without=["model"]).format_help()
    other = dataclass_parser(Options, "loralib toy", other_help={"output": "another folder"}).format_help()
    assert "another folder" in other
    assert "where to write" not in other


def test_the_words_that_an_option_takes_are_known() -> None:
    assert parser().choices_of["method"] == ["lora", "full"]
    assert "seed" not in parser().choices_of
