"""A path that may hold an adapter. What is there is read when it is first asked for, and once, however many formats ask."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..errors import FormatError
from ..storage.atomic import read_json
from ..storage.pickled import read_state_dict
from ..storage.safetensors import SUFFIX, Header, mapped_tensors, read_header
from . import foreign

T = TypeVar("T")


def _once(read: Callable[["Opened"], T]) -> Callable[["Opened"], T]:
    """Remember what a method of `Opened` returns, or the `FormatError` that it raises."""

    @functools.wraps(read)
    def remembered(opened: "Opened") -> T:
        known = opened.known
        if read not in known:
            try:
                known[read] = read(opened)
            except FormatError as error:
                known[read] = error
        if isinstance(known[read], FormatError):
            raise known[read]
        return known[read]  # type: ignore[no-any-return]

    return remembered


class Opened:
    """The file or folder `path`, for the formats to look at. All that reads raises `FormatError` where that cannot be done.

    >>> folder = Opened("nowhere")
    >>> folder / "adapter_config.json" is folder / "adapter_config.json", (folder / "a.safetensors").is_safetensors
    (True, False)
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.known: dict[object, Any] = {}

    def __truediv__(self, name: str) -> "Opened":
        """The file `name` of a folder, the same object each time."""
        inside: Opened = self.known.setdefault(name, Opened(self.path / name))
        return inside

    def __str__(self) -> str:
        return str(self.path)

    @_once
    def json(self) -> dict[str, Any]:
        """The JSON object that the file holds."""
        return read_json(self.path)

    @_once
    def header(self) -> Header:
        """The header of a safetensors file."""
        with self._telling_what_it_is():
            return read_header(self.path)

    @_once
    def mapped(self) -> dict[str, Tensor]:
        """The tensors of a safetensors file, mapped into memory."""
        return mapped_tensors(self.path, self.header())

    @_once
    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of a pickled file."""
        with self._telling_what_it_is():
            return read_state_dict(self.path)

    @contextmanager
    def _telling_what_it_is(self) -> Iterator[None]:
        """Let an error name what the file is instead, where its first bytes say."""
        try:
            yield
        except FormatError:
            if what := foreign.by_first_bytes(self.path):
                raise FormatError(f"{self} is {what}.") from None
            raise

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of a safetensors file."""
        return self.header().metadata

    @property
    def is_safetensors(self) -> bool:
        """Whether it is a whole safetensors file, whatever its name."""
        try:
            return self.path.is_file() and bool(self.header())
        except FormatError:
            return False

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file whose suffix says what kind it is."""
        return self.mapped() if self.path.suffix == SUFFIX else self.state_dict()

    def names(self) -> list[str]:
        """The names of those tensors."""
        return list(self.header().entries if self.path.suffix == SUFFIX else self.state_dict())

    def all_tensors(self) -> dict[str, Tensor]:
        """The tensors of a file of either kind, whatever its name."""
        return self.mapped() if self.is_safetensors or not self.path.is_file() else self.tensors()

    def known_names(self) -> list[str]:
        """The names of those tensors; none where there is no such file."""
        if self.is_safetensors:
            return list(self.header().entries)
        try:
            return list(self.state_dict()) if self.path.is_file() and self.path.suffix != SUFFIX else []
        except FormatError:
            return []
