"""Errors that teach: each names what was got, what was expected, and what to do.

Every error that a caller can cause derives from `LoRAError` and from the built-in a Python programmer would expect, so
`except ValueError` works as well as `except lora.LoRAError`. When one is raised, models, adapters and files are as they were.
"""


class LoRAError(Exception):
    """Base of all errors that this library raises on purpose.

    Attributes:
        problem: What is wrong, as a sentence; without its full stop where a remedy follows.
        remedy: What to do about it in Python, if that is known.
        option: The same on the command line, where it is done in another way.
        outcome: What has become of files and models, as a sentence.

    Example:
        >>> error = lora.LoRAError("r is missing", "give LoRAConfig(r=8)", option="give --r 8", outcome="Nothing was changed.")
        >>> str(error)
        'r is missing; give LoRAConfig(r=8). Nothing was changed.'
        >>> try:
        ...     lora.LoRAConfig(r=0)
        ... except lora.LoRAError as error:
        ...     type(error).__name__, isinstance(error, ValueError)
        ('ConfigError', True)
    """

    def __init__(self, problem: str, remedy: str = "", option: str = "", outcome: str = ""):
        super().__init__(problem, remedy, option, outcome)
        self.problem, self.remedy, self.option, self.outcome = problem, remedy, option, outcome

    def __str__(self) -> str:
        return self._sentence(self.remedy)

    def on_the_command_line(self) -> str:
        """The message with the remedy as an option of the command line.

        Returns:
            The message.
        """
        return self._sentence(self.option or self.remedy)

    def _sentence(self, remedy: str) -> str:
        sentence = f"{self.problem}; {remedy}." if remedy else self.problem
        return f"{sentence} {self.outcome}" if self.outcome else sentence


class ConfigError(LoRAError, ValueError):
    """Invalid hyper-parameter, or a combination of them that cannot work."""


class ArgumentError(LoRAError, TypeError):
    """An argument of the wrong kind, such as a path where a model is expected."""


class TargetError(LoRAError, ValueError):
    """A name pattern that matches nothing, or matches what cannot be adapted."""


class LayerError(LoRAError, RuntimeError):
    """A layer in a state in which the operation cannot be done."""


class AttachError(LoRAError, ValueError):
    """An adapter that does not fit the model."""


class FormatError(LoRAError, ValueError):
    """An adapter file that cannot be read, or an adapter that a format cannot hold."""


class AlgebraError(LoRAError, ValueError):
    """The result cannot be represented as an adapter."""


class DataError(LoRAError, ValueError):
    """A data set that cannot be used as asked."""


class RunError(LoRAError, RuntimeError):
    """A run folder, an output or a model name that cannot be used as asked."""
