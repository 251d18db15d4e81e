"""An analysis on the terminal: the summary, small pictures, and a table, within the width, whatever the names."""

import pytest
import torch

from loralib.cli.analysis_shown import show, small
from loralib.cli.terminal import BLOCKS
from reported import along, analysed, random_adapter


@pytest.mark.parametrize("columns", ["60", "200"])
def test_all_fits_the_width(columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    show(analysed(random_adapter(2, 0), random_adapter(9, 1)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "one and two" in out
    assert "- The first direction of one lies in the first eight of two by φ" in " ".join(out.split())
    assert out.count("φ(1, 1) 0.") >= 2
    assert "query (3)" in out


def test_columns_without_numbers_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show(analysed(along(0)))
    assert "intruders" not in capsys.readouterr().out


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show(analysed(along(0, name="[red]a[/x]\x1b"), along(1, name="[red]a[/x]\x1b"), names=[":smile:", "[b]"]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for part in (":smile: and [b]", "[red]a[/x]\\x1b"):
        assert part in out


def test_a_pair_of_zeros_has_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    show(analysed(along(0, strength=(0.0,)), along(1)))
    assert "i, down" not in capsys.readouterr().out


def test_a_small_picture_has_the_corners_and_full_bars_for_the_highest() -> None:
    assert small(torch.tensor([[0.0, 0.5], [0.25, 1.0]]), 0.5) == [BLOCKS[0] + BLOCKS[-1], BLOCKS[4] + BLOCKS[-1]]
    lines = small(torch.linspace(0, 1, 64 * 64).reshape(64, 64), 1.0)
    assert [len(line) for line in lines] == [16] * 4
    assert (lines[0][0], lines[-1][-1]) == (BLOCKS[0], BLOCKS[-1])
