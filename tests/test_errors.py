"""Errors carry problem, remedy and outcome as data; a sentence is made of them for Python, and another for the command line."""

import pickle

import pytest

import loralib as lora
from loralib import choices, errors
from loralib.cli import guarded

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, lora.LoRAError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_ours_and_one_that_a_python_programmer_expects(kind):
    error = kind("r is missing", "give LoRAConfig(r=8)", option="give --r 8", outcome="Nothing was changed.")
    assert isinstance(error, lora.LoRAError)
    assert kind is lora.LoRAError or isinstance(error, ValueError | RuntimeError | TypeError)
    assert str(error) == "r is missing; give LoRAConfig(r=8). Nothing was changed."
    assert error.on_the_command_line() == "r is missing; give --r 8. Nothing was changed."


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_to_another_process(kind):
    error = kind("it is broken", "mend it", option="--mend", outcome="Nothing was written.")
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is kind
    assert (copied.problem, copied.remedy, copied.option, copied.outcome) == (
        error.problem,
        error.remedy,
        error.option,
        error.outcome,
    )


def test_a_sentence_alone_stays_as_it_is():
    assert str(lora.FormatError("It is damaged; fetch it again.")) == "It is damaged; fetch it again."
    assert lora.FormatError("It is damaged.").on_the_command_line() == "It is damaged."


def test_the_command_line_says_its_own_remedy(capsys):
    def work() -> int:
        raise lora.FormatError("lora_alpha is missing", "give LoRAConfig(lora_alpha=16)", option="give --lora-alpha 16")

    assert guarded(work) == 2
    assert capsys.readouterr().err == "loralib: lora_alpha is missing; give --lora-alpha 16.\n"


def test_choices_are_offered_once_each():
    offered = [choice for name, choice in vars(choices).items() if name[0].isupper() and name != "Literal"]
    assert offered
    for choice in offered:
        assert len(set(choices.names(choice))) == len(choices.names(choice)) >= 2
