"""What MkDocs runs while it builds the site: pages from files outside docs/, generated parts, links that leave the site."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import page_notebook
from generated_parts import PARTS

ROOT = Path(__file__).parents[2]
OUTSIDE = {  # files of the repository that are pages of the site, too
    "CHANGELOG.md": "lab/changelog.md",
    "CONTRIBUTING.md": "lab/contributing.md",
    "UPGRADING.md": "howto/from-0.1.md",
    "README.md": "index.md",
    "examples/README.md": "reproduction/examples.md",
}
TUTORIAL = "start/tutorial"

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_PART = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_NOTE = re.compile(r"^<!--(?! generated:).*?-->\n", re.MULTILINE | re.DOTALL)
_OUTPUT = re.compile(r"^```output$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/, and the tutorial as a notebook."""
    for source, page in OUTSIDE.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    tutorial = (ROOT / "docs" / f"{TUTORIAL}.md").read_text(encoding="utf-8")
    files.append(File.generated(config, f"{TUTORIAL}.ipynb", content=page_notebook.from_page(tutorial)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Fill in the generated parts, drop notes to the tests, and mend links that lead out of docs/."""
    text = _PART.sub(lambda part: PARTS[part[1]](), _NOTE.sub("", markdown))
    text = _OUTPUT.sub('```{ .text .output .no-copy title="prints" }', text)
    own = page.file.src_uri
    source = next((path for path, uri in OUTSIDE.items() if uri == own and own != "index.md"), f"docs/{own}")
    return _LINK.sub(lambda link: _mended(link, source, own, files), text)


def _mended(link: re.Match[str], source: str, own: str, files: Files) -> str:
    """A link of the file `source` as one of the page `own`; its text alone where the site does not have what it points to."""
    image, text, target = link.groups()
    path, _, anchor = target.partition("#")
    if not path or ":" in path or path.startswith("/"):
        return link[0]
    full = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    uri = OUTSIDE.get(full, full.removeprefix("docs/") if full.startswith("docs/") else None)
    if uri is None and (ROOT / full).exists():
        return str(text)
    if uri is None:
        return link[0]
    here = posixpath.relpath(uri, posixpath.dirname(own) or ".")
    return f"{image}[{text}]({here}{'#' + anchor if anchor else ''})"
