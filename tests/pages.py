"""What is wrong with an HTML page that is one file: read as a browser would, without one."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "circle", "path", "image"}
LOADED = {"src", "href", "data", "xlink:href", "poster", "srcset", "action"}
EMBEDDED = ("data:image/png;base64,", "data:image/svg+xml;base64,")  # a picture loads nothing itself
SOURCES = re.compile(r"url\(|@import|fetch\(|https?://|//\w+\.\w+/", re.IGNORECASE)


class Page(HTMLParser):
    """The problems of a page: tags, ids, texts of pictures, and what it would load."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.problems: list[str] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]
        self.problems += [f"id {name} is there twice" for name in set(self.ids) if self.ids.count(name) > 1]
        self.problems += [f"#{name} leads nowhere" for name in self.targets if name not in self.ids]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag in ("svg", "img") and not (values.get("aria-label") or values.get("alt") or values.get("aria-hidden") == "true"):
            self.problems.append(f"<{tag}> has no text alternative")
        for name, value in values.items():
            if name in LOADED and value.startswith("#"):
                self.targets.append(value[1:])
            elif name in LOADED and not value.startswith(EMBEDDED):
                self.problems.append(f"<{tag} {name}={value!r:.40}> loads something")
            if name.startswith("on") or SOURCES.search(value):
                self.problems.append(f"<{tag} {name}={value!r:.40}> runs or loads something")
        for name in ("aria-labelledby", "aria-describedby", "for"):
            self.targets += values.get(name, "").split()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.problems.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.scripts += [data] * (self.open[-1] == "script")
            self.problems += [f"loads {found[0]}" for found in SOURCES.finditer(data)]
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, in one line."""
        return " ".join("".join(self.words).split())
