"""Mutated files, and the one thing a reader may do with them: give an adapter, or refuse with a `LoRAError`."""

import json
import random
import signal
from pathlib import Path
from types import FrameType

import torch
from seeds import Files

import loralib as lora

SECONDS = 5  # for a file of a few kilobytes
_NUMBERS = (0, 1, 2, 127, 255, 256, 2**16, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1)
_VALUES: tuple[object, ...] = (None, True, -1, 0, 1e308, 2**70, "", "x", [], {}, [[]], {"a": 1}, "F64", [2**62], "\ud800")


class Hang(BaseException):
    """A reader took too long."""


def mutated(files: Files, rng: random.Random) -> Files:
    """`files` with one to four changes in one of them: bits, bytes, numbers, cuts, copies, or values of its JSON."""
    name = rng.choice(sorted(files))
    content = files[name]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(_MUTATIONS)(content, rng)
    return files | {name: content}


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) % 256**size
    return content[:at] + number.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice((content[:a], content[b:], content[:a] + content[b:]))


def _copy(content: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[a : min(b, a + 64)] + content[at:]


def _digit(content: bytes, rng: random.Random) -> bytes:
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()] or [0]
    at = rng.choice(places)
    return content[:at] + rng.choice((b"9", b"0", b"-", b"99999999999", b"1e9", b"")) + content[at + 1 :]


def _json(content: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in the JSON of a configuration, or in a safetensors header, whose length stays right."""
    start = 8 if content[:1] not in (b"{", b"P", b"\x80") else 0
    size = int.from_bytes(content[:8], "little") if start else len(content)
    try:
        values = json.loads(content[start : start + size])
    except ValueError:
        return _flip(content, rng)
    header = json.dumps(_changed(values, rng), separators=(",", ":")).encode()
    return (len(header).to_bytes(8, "little") + header + content[start + size :]) if start else header


def _changed(value: object, rng: random.Random, depth: int = 0) -> object:
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:
        try:
            return json.dumps(_changed(json.loads(value), rng, depth + 1))
        except ValueError:
            return value
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        key = rng.choice(sorted(value))
        action = rng.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.2:
            return value | {rng.choice(("", "__metadata__", "x.lora_A.weight", key + "x")): value[key]}
        return value | {key: _changed(value[key], rng, depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng, depth + 1), *value[at + 1 :]]
    return rng.choice(_VALUES)


_MUTATIONS = (_flip, _overwrite, _cut, _copy, _digit, _json, _json, _json)


def refused(files: Files, folder: Path) -> bool:
    """Whether reading `files`, written to `folder`, is refused. Anything but an adapter or a `LoRAError` goes through, as do
    a hang, and an attempt at more memory than the process may have (see `memory`)."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder if len(files) > 1 else folder / next(iter(files))
    with Time(SECONDS):
        try:
            adapter = lora.load(path, config=lora.LoRAConfig(lora_alpha=4) if "adapter.pt" in files else None)
            for tensor in adapter.all_tensors():
                tensor.contiguous().reshape(-1).view(torch.uint8).sum()
        except lora.LoRAError as error:
            if "alloc" in str(error):  # that is how torch says that there is not enough memory
                raise MemoryError(str(error)) from None
            return True
    return False


class Time:
    """A block that raises `Hang` when it takes more than so many seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._too_long)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _too_long(self, number: int, frame: FrameType | None) -> None:
        raise Hang(f"it took more than {self.seconds} seconds")
