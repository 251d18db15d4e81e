"""Errors about the arguments of a command, in one sentence that names what was probably meant.

An option has one name here. Names that other programs give to the same thing, and misspelt ones, are answered with ours.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..printing import short

OTHER_NAMES: Mapping[str, str] = {  # what other programs call it: what it is called here
    **dict.fromkeys(("lr", "peak-lr", "max-lr"), "learning-rate"),
    **dict.fromkeys(("rank", "lora-r", "lora-rank", "lora-dim"), "r"),
    **dict.fromkeys(("alpha",), "lora-alpha"),
    **dict.fromkeys(("dropout", "lora-drop"), "lora-dropout"),
    **dict.fromkeys(("targets", "lora-target-modules", "target-layers", "lora-target", "modules"), "target-modules"),
    **dict.fromkeys(("epochs", "num-epochs", "n-epochs", "max-epochs", "train-epochs", "epoch"), "num-train-epochs"),
    **dict.fromkeys(("output-dir", "out", "out-dir", "save-dir", "output-path", "save-path", "outdir"), "output"),
    **dict.fromkeys(("model-name", "model-name-or-path", "model-path", "base-model", "pretrained", "checkpoint"), "model"),
    **dict.fromkeys(("dataset", "train-file", "train-data", "data-path", "dataset-name", "train", "file"), "data"),
    **dict.fromkeys(("validation-file", "val-data", "dev-data", "valid-data", "validation-data", "eval-file"), "eval-data"),
    **dict.fromkeys(("test-file",), "test-data"),
    **dict.fromkeys(("train-batch-size", "bs", "per-device-train-batch-size", "batch"), "batch-size"),
    **dict.fromkeys(("per-device-batch-size", "micro-batch-size"), "device-batch-size"),
    **dict.fromkeys(("eval-batch-size",), "per-device-eval-batch-size"),
    **dict.fromkeys(("max-seq-length", "max-seq-len", "cutoff-len", "seq-len", "block-size"), "max-length"),
    **dict.fromkeys(("grad-accum", "accumulation-steps", "gradient-accumulation", "accumulate"), "gradient-accumulation-steps"),
    **dict.fromkeys(("warmup", "warmup-proportion"), "warmup-ratio"),
    **dict.fromkeys(("wd",), "weight-decay"),
    **dict.fromkeys(("early-stopping", "early-stopping-patience"), "patience"),
    **dict.fromkeys(("metric",), "metric-for-best-model"),
    **dict.fromkeys(("max-train-samples", "max-samples"), "max-train-rows"),
    **dict.fromkeys(("resume-from-checkpoint", "continue"), "resume"),
    **dict.fromkeys(("force", "f", "overwrite-output-dir", "replace", "yes", "y"), "overwrite"),
    **dict.fromkeys(("print-config", "show-config"), "dry-run"),
    **dict.fromkeys(("num-beams", "beam", "beam-size"), "beams"),
    **dict.fromkeys(("no-repeat-ngram-size",), "no-repeat-ngram"),
    **dict.fromkeys(("type", "to", "output-format", "out-format"), "format"),
    **dict.fromkeys(("text-field", "text-key", "sentence-column", "input-column"), "text-column"),
    **dict.fromkeys(("label-field", "label-key", "target-column"), "label-column"),
    **dict.fromkeys(("task-name",), "task"),
    **dict.fromkeys(("refs", "reference", "ref"), "references"),
    **dict.fromkeys(("verify", "check-only"), "check"),
    **dict.fromkeys(("weight", "scale", "scales"), "weights"),
    **dict.fromkeys(("quiet", "json-output"), "json"),
}


def nearest_option(word: str, known: Collection[str]) -> str | None:
    """The option of `known` that `word` means, by another name or misspelt.

    >>> known = ["--learning-rate", "--r", "--output", "--overwrite", "--lora-alpha"]
    >>> [nearest_option(word, known) for word in ("--learning_rate", "--lr", "--lora-r", "--outptu", "--Force", "--xyz")]
    ['--learning-rate', '--learning-rate', '--r', '--output', '--overwrite', None]
    """
    name = word.partition("=")[0].lstrip("-").lower().replace("_", "-").replace(".", "-")
    for meant in (name, OTHER_NAMES.get(name, ""), name.removeprefix("lora-")):
        if f"--{meant}" in known:
            return f"--{meant}"
    close = get_close_matches(f"--{name}", [option for option in known if option.startswith("--")], n=1, cutoff=0.7)
    return close[0] if close else None


def unknown(prog: str, words: Sequence[str], known: Collection[str]) -> str:
    """The sentence for arguments that a command does not accept."""
    options = [word for word in words if word.startswith("-") and not re.fullmatch(r"-?[\d.]+(e-?\d+)?", word)]
    if not options:
        return (
            f"{_command(prog)} does not take the argument {short(words[0])}; leave it out, or put texts with spaces into quotes"
        )
    meant = nearest_option(options[0], known)
    return f"{_command(prog)} has no option {options[0].partition('=')[0]}" + (f"; nearest: {meant}" if meant else "")


def _command(prog: str) -> str:
    """The name of a command without the program's; errors begin with it."""
    return prog.removeprefix("loralib ")


def known_options(actions: Iterable[Any]) -> list[str]:
    """The options of a parser's actions."""
    return [option for action in actions for option in action.option_strings]


_ARGPARSE: Sequence[tuple[str, str]] = (  # argparse's words and ours
    (r"argument (?P<o>\S+): invalid (int|_?whole) value: (?P<v>.*)", "{o}: {v} is not a whole number"),
    (r"argument (?P<o>\S+): invalid float value: (?P<v>.*)", "{o}: {v} is not a number"),
    (r"argument (?P<o>\S+): expected (one|at least one) argument", "{o}: a value is missing"),
    (r"argument (?P<o>\S+): ignored explicit argument (?P<v>.*)", "{o} takes no value; leave out {v}"),
    (r"the following arguments are required: (?P<o>.*)", "{o} is missing"),
    (r"argument (?P<o>\S+): (?P<v>.*)", "{o}: {v}"),
)


def in_our_words(message: str, prog: str, known: Collection[str]) -> str:
    """An error message of argparse as one plain sentence, without its full stop."""
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return unknown(prog, found[1].split(" "), known)
    if found := re.fullmatch(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message, re.DOTALL):
        return one_of(_long(found[1]), found[2], [choice.strip("' ") for choice in found[3].split(",")])
    for pattern, ours in _ARGPARSE:
        if match := re.fullmatch(pattern, message, re.DOTALL):
            groups = match.groupdict()
            return ours.format(**groups | {"o": _long(groups["o"])})
    return message


def _long(names: str) -> str:
    """An option's long name: '-o/--output' is '--output'."""
    return names.rsplit("/", maxsplit=1)[-1] if names.startswith("-") else names


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """The sentence for a value that is not one of the choices."""
    close = get_close_matches(value, choices, n=1)
    return f"{option}: {short(value)} is not one of {', '.join(choices)}" + (f"; nearest: {close[0]}" if close else "")


def expected(kind: Any) -> str:
    """The values that an option accepts, in words, by its type.

    >>> expected(int | None), expected(Literal["a", "b"])
    ('a whole number', 'one of a, b')
    """
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return ", or ".join(dict.fromkeys(_words(part) for part in parts if part is not NoneType))


def choices_of(kind: Any) -> list[str]:
    """The choices of an option, if it has nothing else, by its type.

    >>> choices_of(Literal["a", "b"] | None), choices_of(int), choices_of(float | Literal["auto"])
    (['a', 'b'], [], [])
    >>> choices_of(bool | Literal["auto"])
    ['auto', 'true', 'false']
    """
    if {int, float, str} & set(get_args(kind)):
        return []
    words = [word for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part)]
    return words + ["true", "false"] * (bool in get_args(kind))


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{{name or regular expression: {_words(inner[1])}}}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "names joined by commas" if inner[0] is str else f"a list such as {_LISTS.get(inner[0], '[…]')}"
    return str(kind)


_SIMPLE: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}
_LISTS = {bool: "[true, false, true]", int: "[2048, 512]"}
