"""What the parsers of all commands share: complaints are one sentence."""

from pathlib import Path

import pytest

from loralib.cli.parsing import OneSentenceParser, add_run, add_trust, to_path
from loralib.errors import ConfigError


def parser() -> OneSentenceParser:
    made = OneSentenceParser(prog="loralib toy", description="‖ΔW‖")
    add_run(made)
    add_trust(made)
    made.add_argument("--count", type=int)
    made.add_argument("--weights", type=float, nargs="+")
    made.add_argument("-o", "--output", type=to_path)
    return made


def test_a_run_is_a_path_and_trust_is_given_only_by_its_whole_name() -> None:
    assert parser().parse_args(["out"]).run == Path("out")
    assert parser().parse_args(["out"]).trust_remote_code is False
    assert parser().parse_args(["out", "--trust-remote-code"]).trust_remote_code is True
    with pytest.raises(ConfigError, match="no option --trust"):
        parser().parse_args(["out", "--trust"])


@pytest.mark.parametrize("number", ["-1", "-.5", "-1.", "-1e-3", "-2.5E+4", "-1e5", "-inf"])
def test_a_negative_number_is_a_value_in_any_form(number: str) -> None:
    parsed = parser().parse_args(["out", "--weights", number, "3", number])
    assert parsed.weights == [float(number), 3.0, float(number)]


@pytest.mark.parametrize("word", ["-e3", "-1x", "-1e", "--1", "-i"])
def test_other_words_with_a_dash_are_options(word: str) -> None:
    with pytest.raises(ConfigError, match=r"toy has no option|--weights: a value is missing"):
        parser().parse_args(["out", "--weights", word])


@pytest.mark.parametrize("words", [["out", "-o", ""], ["out", "--output="], [""]])
def test_an_empty_path_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"(--output|RUN): the value is empty; leave it out, or set the variable"):
        parser().parse_args(words)
    assert parser().parse_args(["out", "-o", "~"]).output == Path("~")


@pytest.mark.parametrize("words", [[], ["out", "--count", "x"], ["out", "--counts", "3"], ["out", "more"], ["out", "--count"]])
def test_what_is_wrong_is_one_sentence_that_names_the_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"; see loralib toy --help\.$") as caught:
        parser().parse_args(words)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_help_is_printed_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--help"])
    assert ended.value.code == 0
    assert "usage: loralib toy" in capsys.readouterr().out
