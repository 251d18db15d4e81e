"""Text for rich means what it says: no markup, no emoji codes, no control characters."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from loralib.train import rich_text

STRANGE = "[red]a[/x] :smile: [b]"


@pytest.mark.parametrize("text", [STRANGE, "a" * 200, "", "ä"])
def test_a_line_is_printed_as_it_is_and_not_broken(text: str) -> None:
    console = Console(file=io.StringIO(), width=20)
    rich_text.say(console, text, "next")
    assert console.file.getvalue() == f"{text}\nnext\n"


def test_control_characters_are_written_out() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    rich_text.say(console, "a\x1b[31m\nb")
    assert console.file.getvalue() == "a\\x1b[31m\\nb\n"


def test_titles_of_tables_are_text() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(Table("a" * 40, title=rich_text.plain(STRANGE)))
    assert STRANGE in console.file.getvalue()
