"""Text from elsewhere (paths, labels, names in files) that is shown to a person."""


def printable(text: str) -> str:
    """The text with control characters shown, so that it stays on its line and the terminal obeys nobody.

    >>> printable("tab\\there")
    'tab\\\\there'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def short(value: object, longest: int = 80) -> str:
    """The `repr` of a value on one line, cut where it is long.

    >>> short([1, 2]), short("a" * 100, longest=5)
    ('[1, 2]', "'aaaa…")
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= longest else text[:longest] + "…"
