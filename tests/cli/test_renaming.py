"""The option --rename OLD=NEW."""

import pytest

import loralib as lora
from loralib.cli import renaming
from loralib.cli.parsing import OneSentenceParser
from loralib.errors import ConfigError
from sample_adapters import of


def named(*words: str) -> list[str]:
    """The layers of an adapter on a.q and a.v by the names that the words give."""
    parser = OneSentenceParser(prog="loralib toy")
    renaming.add(parser)
    given = [word for pair in words for word in ("--rename", pair)]
    return list(renaming.renamed(of(), parser.parse_args(given)).layers)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["a.q", "a.v"]),
        (["a=b"], ["b.q", "b.v"]),
        (["a="], ["q", "v"]),
        (["=model"], ["model.a.q", "model.a.v"]),
        (["a.q=x", "a=b"], ["x", "b.v"]),
        (["a=b=c"], ["b=c.q", "b=c.v"]),
    ],
)
def test_modules_get_the_names_that_are_given(words: list[str], names: list[str]) -> None:
    assert named(*words) == names


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["a"], ConfigError, "'a' has no '='; write OLD=NEW"),
        (["a=b", "a=c"], ConfigError, "gives one module two names; leave one out"),
        (["x=y"], lora.TargetError, "'x' fits nothing"),
    ],
)
def test_names_that_cannot_be_given_are_refused(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        named(*words)


def test_without_the_option_the_adapter_is_the_same() -> None:
    parser, adapter = OneSentenceParser(prog="loralib toy"), of()
    renaming.add(parser)
    assert renaming.renamed(adapter, parser.parse_args([])) is adapter
