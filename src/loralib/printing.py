"""Text from elsewhere (paths, labels, names in files) that is shown to a person."""


def printable(text: str) -> str:
    """The text with control characters shown, so that it stays on its line and the terminal obeys nobody.

    >>> printable("tab\\there")
    'tab\\\\there'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
