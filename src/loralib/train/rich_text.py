"""Text for rich that means what it says: no markup (`[red]`), no emoji codes (`:smile:`), no control characters.

Whatever a console prints goes through here, since paths, labels and names of layers may hold any character.
"""

from rich.console import Console
from rich.text import Text

from ..printing import printable


def plain(text: str) -> Text:
    """One line of text, as it is.

    >>> plain("[bold]a[/x]\\x1b").plain
    '[bold]a[/x]\\\\x1b'
    """
    return Text(printable(text))


def say(console: Console, *lines: str) -> None:
    """Print lines as they are; the terminal breaks those that are too long for it."""
    for line in lines:
        console.print(plain(line), soft_wrap=True)
