"""Progress is shown on a terminal only, and leaves nothing behind."""

import io
import sys

import pytest

from loralib.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch, rich: bool) -> Terminal:
    """Standard error as a terminal, with or without the package rich."""
    made = Terminal()
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Merging") as progress:
        progress.at(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_rich_a_line_is_written_over_and_wiped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch, rich=False)
    with Progress("Merging") as progress:
        for done in (0, 1, 2):
            progress.at(done, 2)
        progress.at(0, 0)
    first, *shares, spaces, end = terminal.getvalue().split("\r")
    assert (first, end) == ("", "")
    assert shares == ["Merging: 0% ", "Merging: 50% ", "Merging: 100% ", "Merging: 0% "]
    assert spaces.isspace()
    assert len(spaces) >= max(map(len, shares))


@pytest.mark.parametrize("rich", [True, False])
def test_an_error_passes_and_nothing_is_shown_afterwards(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, progress = terminal_of(monkeypatch, rich), Progress("Merging")

    def work() -> None:
        with progress:
            progress.at(1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert terminal.getvalue()
    assert not terminal.getvalue().endswith("%")
