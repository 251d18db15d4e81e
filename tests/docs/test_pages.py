"""Every code block of every page runs, prints what the page says, and names options that exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from loralib import cli
from loralib.cli import completion
from page_blocks import Block, blocks
from peers import quantizer

ROOT = Path(__file__).parents[2]
OUTSIDE = [ROOT / name for name in ("README.md", "UPGRADING.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *OUTSIDE]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?: ?%)?")

pytestmark = pytest.mark.slow


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def same(printed: str, shown: str) -> bool:
    """Whether a page shows what was printed: words and whole numbers as they are, other numbers within a tenth."""
    if NUMBER.sub("0", printed.strip()) != NUMBER.sub("0", shown.strip()):
        return False
    return all(close(a, b) for a, b in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True))


def close(one: str, other: str) -> bool:
    a, b = (float(text.rstrip(" %").replace(",", "")) for text in (one, other))
    return abs(a - b) <= 0.1 * abs(b) if re.search(r"[.%]", one + other) else one == other


@pytest.mark.parametrize(
    ("printed", "shown", "equal"),
    [
        ("accuracy 97.5 %", "accuracy 95.1 %", True),
        ("accuracy 97.5 %", "accuracy 57.0 %", False),
        ("294,912 parameters", "294,913 parameters", False),
        ("a b\n", "a b", True),
        ("a b", "a c", False),
    ],
)
def test_what_a_page_shows_is_compared_with_what_is_printed(printed: str, shown: str, equal: bool) -> None:
    assert same(printed, shown) is equal


def commands(block: Block) -> list[list[str]]:
    """The `loralib` commands in a block of shell lines, as words."""
    lines = block.code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if re.match(r"(\$ )?loralib ", line)]
    return [line[1:] for line in words]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_on_a_page_exist_and_know_their_options(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        for command, *words in commands(block) if block.kind in ("sh", "", "console") else ():
            if command.startswith("-"):
                continue
            known = completion.options_of(command).keys()
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"--debug"}
            assert options <= known, f"{name_of(page)}:{block.line}: loralib {command} has no {options - known}"


def run(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Run a block. A program is padded, so that a traceback names the line of the page."""
    if block.kind == "sh":
        for words in commands(block):
            assert cli.main(words) == 0, f"{name_of(page)}:{block.line}: {words}"
        return
    program = compile("\n" * block.line + block.code, name_of(page), "exec")
    if not block.note.startswith("not run"):
        exec(program, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if page.name == "quantized.md":
        quantizer("bitsandbytes")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind in ("python", "setup") or block.note == "run":
            run(block, page, namespace)
            printed = capsys.readouterr().out
        elif block.kind == "output":
            assert same(printed, block.code), (
                f"{name_of(page)}:{block.line} shows\n{block.code}\nbut this was printed:\n{printed}"
            )
