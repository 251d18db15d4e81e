"""Arguments of the wrong kind: one `ArgumentError` that says what was got, what was expected, and which call does what was
meant.

An adapter and a configuration are known by the name of their class here, since the classes themselves are defined above.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .printing import short

UNCHANGED = "Nothing was changed."
_LONGEST = 60

MODEL, ADAPTER, PATH = "a model (torch.nn.Module)", "an Adapter", "a path (a str or pathlib.Path)"

_MEANT: Mapping[tuple[str, str], str] = {  # by what was expected and what was got: what to do
    (MODEL, PATH): "load the model first, in transformers by AutoModel.from_pretrained",
    (MODEL, ADAPTER): "the model is the first argument, as in lora.attach(model, adapter)",
    (MODEL, "LoRAConfig"): "the model is the first argument, as in lora.inject(model, config)",
    (MODEL, "state dict"): "load it into a model first, by model.load_state_dict",
    (MODEL, "list"): "give one model",
    (ADAPTER, MODEL): "lora.extract(model) makes an adapter of its LoRA layers",
    (ADAPTER, PATH): "lora.load reads an adapter from files",
    (ADAPTER, "LoRAConfig"): "a configuration has no weights: lora.inject(model, config) puts fresh ones on a model",
    (ADAPTER, "state dict"): "lora.load reads the file that it was saved to; lora.load_legacy loads one of loralib 0.1",
    (ADAPTER, "list"): "lora.combine(adapters) makes one adapter of several",
    (PATH, MODEL): "give the path of files; lora.extract(model) takes the adapter out of a model",
    (
        PATH,
        ADAPTER,
    ): "it is in memory already: lora.attach(model, adapter) uses it, lora.save(adapter, path) saves it",
    (PATH, "state dict"): "save it to a file first",
    (PATH, "LoRAConfig"): "a configuration goes with a model: lora.inject(model, config)",
    (PATH, "list"): "give one path",
}


def described(value: object) -> str:
    """What an argument is, in words.

    >>> described("org/model"), described(nn.Linear), described({"a.weight": torch.ones(1)})
    ("the text 'org/model'", 'the class Linear', 'a dictionary of tensors')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str | os.PathLike):
        return f"the {'text' if isinstance(value, str) else 'path'} {short(str(value), _LONGEST)}"
    if isinstance(value, Mapping):
        return "a dictionary of tensors" if _kind(value) == "state dict" else "a dictionary"
    name = type(value).__name__
    if isinstance(value, nn.Module):
        return f"a model ({name})"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _kind(value: object) -> str:
    """Which of the keys of `_MEANT` an argument is; "" for others."""
    if isinstance(value, nn.Module):
        return MODEL
    if isinstance(value, str | os.PathLike):
        return PATH
    if isinstance(value, Mapping):
        return "state dict" if any(isinstance(held, Tensor) for held in value.values()) else ""
    if isinstance(value, list | tuple):
        return "list"
    return {"Adapter": ADAPTER, "LoRAConfig": "LoRAConfig"}.get(type(value).__name__, "")


def wrong(what: str, expected: str, value: object, remedy: str = "") -> ArgumentError:
    """The error for an argument `what` that is not what was expected."""
    if not remedy and isinstance(value, type):
        remedy = f"make an instance of the class first, {value.__name__}(…)"
    remedy = remedy or _MEANT.get((expected, _kind(value)), "") or _models_within(expected, value)
    problem = f"{what}: expected {expected}, got {described(value)}"
    return ArgumentError(problem if remedy else f"{problem}.", remedy, outcome=UNCHANGED)


def _models_within(expected: str, value: object) -> str:
    """For a pipeline or a Trainer, which holds models: which ones."""
    held = getattr(value, "__dict__", {}) if expected == MODEL else {}
    names = [name for name, part in held.items() if isinstance(part, nn.Module)]
    return f"give a model that it holds: .{', .'.join(names[:4])}" if names else ""


def check_model(value: object, what: str = "model") -> None:
    """`ArgumentError` unless `value` is a model."""
    if not isinstance(value, nn.Module):
        raise wrong(what, MODEL, value)


def as_path(value: Any, what: str = "path") -> Path:
    """`value` as a path; `ArgumentError` unless it is one."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise wrong(what, PATH, value)
    return Path(value)


def check_name(value: object, what: str) -> None:
    """`ArgumentError` unless `value` is a text."""
    if not isinstance(value, str):
        raise wrong(what, "a name (a str)", value)


def check_dtype(value: object, what: str = "dtype") -> None:
    """`ArgumentError` unless `value` is None, which leaves it to the call, or a dtype of floating-point numbers."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise wrong(what, "a floating-point torch.dtype, such as torch.float32", value)


def check_device(value: object, what: str = "device") -> None:
    """`ArgumentError` unless `value` is None or a device, by its name or not."""
    expected = "a torch.device or its name, such as 'cpu'"
    if value is not None and not isinstance(value, str | torch.device):
        raise wrong(what, expected, value)
    try:
        torch.device(value or "cpu")
    except RuntimeError:
        raise wrong(what, expected, value) from None


def check_tensor(value: object, what: str) -> None:
    """`ArgumentError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise wrong(what, "a torch.Tensor", value)


def check_share(value: object, what: str, remedy: str) -> None:
    """`ArgumentError` unless `value` is None or a number; a share's range is checked where it is used."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise wrong(what, "a number", value, remedy)


def check_mapping(value: object, what: str, of: type, kind: str) -> None:
    """`ArgumentError` unless `value` maps texts to values of the class `of`, which `kind` names."""
    if not isinstance(value, Mapping):
        raise wrong(what, f"a dictionary {{name: {kind}}}", value)
    for name, held in value.items():
        if not isinstance(name, str) or not isinstance(held, of):
            raise wrong(f"{what}[{name!r:.60}]", kind, held)
