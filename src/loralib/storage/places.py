"""What is at a path, for errors that say so: files are opened only where there is one, as reading from a pipe would wait."""

from pathlib import Path

from ..errors import FormatError


def what_is_at(path: Path) -> str:
    """What is at a path where a file is expected, as the end of a sentence.

    >>> what_is_at(Path("nowhere"))
    'does not exist'
    """
    if path.is_dir():
        return "is a folder"
    if path.is_file():
        return "is a file"
    if path.exists():
        return "is a pipe or a device, not a file"
    return "is a link to what does not exist" if path.is_symlink() else "does not exist"


def check_is_file(path: Path, kind: str) -> None:
    """`FormatError` when there is no file at `path`. kind: which is expected there."""
    if not path.is_file():
        raise FormatError(f"{path} {what_is_at(path)}; expected a {kind}, so fetch or save it again.")


def unreadable(path: Path, error: OSError) -> FormatError:
    """The error for a file that the system does not let this process read."""
    return FormatError(f"{path} cannot be read ({error.strerror or error}); see to its permissions.")
