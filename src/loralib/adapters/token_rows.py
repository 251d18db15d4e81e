"""New values of some rows of a matrix, as an adapter for added tokens brings them."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..arguments import check_tensor, wrong
from ..errors import ConfigError
from ..printing import short
from ..tensors import same_bits


@dataclass(frozen=True, eq=False)
class TokenRows:
    """New values of some rows of a matrix, such as an embedding's for tokens that were added.

    Args:
        indices: The numbers of the rows, all different.
        values: The rows, (len(indices), dim).

    Raises:
        ConfigError: When the indices are not different row numbers, or not as many as there are values.
        ArgumentError: When `values` is not a tensor, or `indices` not a list.

    Example:
        >>> lora.TokenRows((5, 7), torch.zeros(2, 4)).indices
        (5, 7)
    """

    indices: tuple[int, ...]
    values: Tensor

    def __post_init__(self) -> None:
        check_tensor(self.values, "values")
        if not isinstance(self.indices, Iterable):
            raise wrong("indices", "a list of row numbers", self.indices)
        object.__setattr__(self, "indices", tuple(self.indices))
        whole = all(type(index) is int and index >= 0 for index in self.indices)
        if not whole or len(set(self.indices)) != len(self.indices) or self.values.dim() < 1:
            raise ConfigError(f"indices={short(self.indices)}: must be the numbers of different rows, such as (50257, 50258).")
        if len(self.indices) != len(self.values):
            raise ConfigError(
                f"{len(self.indices)} indices for values of shape {tuple(self.values.shape)}; one a row is needed."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRows):
            return NotImplemented
        return self.indices == other.indices and same_bits(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.indices, self.values.shape))
