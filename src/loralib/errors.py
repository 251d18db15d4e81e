"""Errors that teach: each names what was got, what was expected, and what to do.

Every error that a caller can cause derives from `LoRAError` and from the built-in a Python programmer would expect, so
`except ValueError` works as well as `except lora.LoRAError`. When one is raised, models, adapters and files are as they were.
"""


class LoRAError(Exception):
    """Base of all errors that this library raises on purpose."""


class ConfigError(LoRAError, ValueError):
    """A hyper-parameter or a combination of them that cannot work."""


class TargetError(LoRAError, ValueError):
    """A name pattern that matches nothing, or matches what cannot be adapted."""


class LayerError(LoRAError, RuntimeError):
    """A layer in a state in which the operation cannot be done."""


class AttachError(LoRAError, ValueError):
    """An adapter that does not fit the model."""


class FormatError(LoRAError, ValueError):
    """An adapter file that cannot be read, or an adapter that a format cannot hold."""


class AlgebraError(LoRAError, ValueError):
    """An operation on adapters whose result no adapter can be."""


class DataError(LoRAError, ValueError):
    """A data set that cannot be used as asked."""


class RunError(LoRAError, RuntimeError):
    """A run folder or a model name that cannot be used as asked."""
