"""A page as a Jupyter notebook: its text as Markdown cells, its Python blocks as cells that run.

python docs/hooks/page_notebook.py PAGE.md > NOTEBOOK.ipynb
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from page_blocks import blocks

_ITSELF = re.compile(r" *\[[^\[\]]*\]\([^()\s]+\.ipynb\)\.")
_LINK = re.compile(r"\[([^\[\]]*)\]\((?!https?:)[^()\s]+\)")


def from_page(page: str) -> str:
    """The notebook of a page, as JSON; links to other pages are plain text in it, and the link to itself is left out."""
    page = _ITSELF.sub("", page)
    cells: list[dict[str, Any]] = []
    end = 0
    for block in blocks(page):
        if block.kind not in ("python", "setup", "output"):
            continue
        _add(cells, "markdown", _LINK.sub(r"\1", page[end : block.span[0]]))
        if block.kind != "output":
            _add(cells, "code", block.code)
        end = block.span[1]
    _add(cells, "markdown", _LINK.sub(r"\1", page[end:]))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)


def _add(cells: list[dict[str, Any]], kind: str, text: str) -> None:
    if not (lines := text.strip().splitlines(keepends=True)):
        return
    code = {"outputs": [], "execution_count": None} if kind == "code" else {}
    cells.append({"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": lines, **code})


if __name__ == "__main__":
    print(from_page(Path(sys.argv[1]).read_text(encoding="utf-8")))
