"""`Bound`: what `inject` and `attach` return."""

from collections import Counter
from collections.abc import Iterable, Mapping


class Bound(list[str]):
    """What `inject` and `attach` return: the names of the adapted layers, as a list.

    Args:
        names: The names.
        parameters: How many numbers the factors of these layers hold.
        left_out: Why other modules that hold matrices got no update, by name, where "all-linear" or `exclude_modules` chose.
        experts: How many of the layers are the weights of a mixture's experts.

    Example:
        >>> model = nn.ModuleDict({"proj": nn.Linear(8, 4), "rnn": nn.LSTM(4, 4)})
        >>> bound = lora.inject(model, lora.LoRAConfig(r=2))
        >>> bound, bound.parameters
        (['proj'], 24)
        >>> bound.left_out
        {'rnn': 'LSTM layers cannot be adapted'}
    """

    parameters: int
    left_out: dict[str, str]
    experts: int

    def __init__(
        self, names: Iterable[str] = (), parameters: int = 0, left_out: Mapping[str, str] | None = None, experts: int = 0
    ):
        super().__init__(names)
        self.parameters, self.left_out, self.experts = parameters, dict(left_out or {}), experts

    def summary(self) -> str:
        """One line: how many layers have updates, those of experts among them, and how many others have none, by reason.

        Returns:
            The line.

        Example:
            >>> model = nn.ModuleDict({"proj": nn.Linear(8, 4), "rnn": nn.LSTM(4, 4)})
            >>> print(lora.inject(model, lora.LoRAConfig(r=2)).summary())
            LoRA on 1 layer (24 parameters); left out: 1 (LSTM layers cannot be adapted)
        """
        layers = f"{len(self)} layer{'s' if len(self) != 1 else ''}"
        layers += f", {self.experts} of them weights of experts" if self.experts else ""
        return f"LoRA on {layers} ({self.parameters:,} parameters)" + (
            f"; left out: {by_reason(self.left_out)}" if self.left_out else ""
        )


def by_reason(left_out: Mapping[str, str]) -> str:
    """How many modules are left out for each reason.

    >>> by_reason({"a": "LSTM layers cannot be adapted", "b": "LSTM layers cannot be adapted"})
    '2 (LSTM layers cannot be adapted)'
    """
    return ", ".join(f"{count} ({reason})" for reason, count in Counter(left_out.values()).most_common())
