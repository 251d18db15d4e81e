"""The code blocks of a page, as the tests run them and as the notebook holds them.

```python                      runs, in one namespace for the whole page
```output                      what the block before it prints
```sh                          its `loralib` commands exist and know their options
<!-- run --> before ```sh      its `loralib` commands run
<!-- setup … -->               Python that runs at this place and is not shown
<!-- not run: why --> before   the next block is only compiled
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_PIECE = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|^<!-- (?P<note>run|not run: [^\n]+) -->$"
    r"|^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A piece of code. kind: "setup", or the language of the fence. note: "run", "not run: …" or nothing."""

    kind: str
    code: str
    line: int
    note: str
    span: tuple[int, int]


def blocks(page: str) -> Iterator[Block]:
    """All blocks of a page, in order."""
    note = ""
    for piece in _PIECE.finditer(page):
        if piece["note"] is not None:
            note = piece["note"]
            continue
        kind, code = ("setup", piece["setup"]) if piece["setup"] is not None else (piece["language"].strip(), piece["code"])
        indent = len(piece["indent"] or "")
        plain = "".join(line[indent:] if indent else line for line in code.splitlines(keepends=True))
        yield Block(kind, plain, page.count("\n", 0, piece.start()) + 1, note, piece.span())
        note = ""
