"""One way to measure for all benchmarks: contenders alternate in one process, and what counts is the ratio within a round.

A machine's speed drifts by more than what is to be measured, but hardly within one round, in which every contender runs
once, in shuffled order. So each round gives one ratio, its time over that of the first contender, the reference, and the
median and the 20 % and 80 % quantiles of these are the result. Garbage is collected between measurements, not in them.

Memory is counted, not sampled, and comes out the same every time. *Saved* is what autograd keeps for the backward pass: every
storage once, parameters and buffers left out (a layer's own input counts). *Peak* is how far one call drives up the memory
that torch has allocated, beyond what was there: from CUDA's statistics, or from the profiler's record of every allocation on
the CPU. What a library keeps outside torch's allocators, or on an autograd context without `save_for_backward`, is not seen
as saved, but the latter is part of the peak.
"""

import gc
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import loralib
from loralib import ops

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler announces on stderr that it starts

OURS, REFERENCE_OPS, BEFORE = "loralib", "loralib, reference ops", "before"
LONG = 0.1  # seconds, which one call exceeds only if every call is long enough to be measured alone

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """At least so many rounds and seconds a case; a contender is called often enough for `measurement` seconds a round."""

    rounds: int = 15
    seconds: float = 10.0
    measurement: float = 0.002


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    reference: also run ours with the plainest implementation of its arithmetic. before: an earlier version of ours, which
    is measured as well. others: measure the other libraries, too.
    """

    device: str = "cpu"
    effort: Effort = Effort()
    reference: bool = False
    before: ModuleType | None = None
    others: bool = True


@dataclass(frozen=True)
class Case:
    """One condition to measure under; the fields of a subclass become columns, and fill its two titles."""

    group_title: ClassVar[str]
    case_title: ClassVar[str]

    @property
    def group(self) -> str:
        """What it shares with other cases: the title of a panel."""
        return self.group_title.format(**asdict(self))

    @property
    def label(self) -> str:
        """What tells it from the others of its group."""
        return self.case_title.format(**asdict(self))


@dataclass(frozen=True)
class Contender:
    """One way to do what a case asks for.

    run: does it once, with what `prepare` makes, unmeasured, for each call. model: whose parameters and buffers do not count
    as saved. facts: further columns, from the median of the seconds a call took; asked when everything has been measured.
    """

    run: Callable[..., object]
    model: nn.Module | None = None
    prepare: Callable[[], tuple[Any, ...]] = tuple
    facts: Callable[[float], Mapping[str, Any]] = lambda seconds: {}


Build = Callable[[Any, str, ModuleType], Mapping[str, Contender]]


# --- time -----------------------------------------------------------------------------------------------------------


def seconds(contender: Contender, calls: int, device: str) -> float:
    """How long so many calls take together; on a GPU by its own clock."""
    arguments = [contender.prepare() for _ in range(calls)]
    if device == "cuda":
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for each in arguments:
            contender.run(*each)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
    start = time.perf_counter()
    for each in arguments:
        contender.run(*each)
    return time.perf_counter() - start


def enough_calls(contender: Contender, first: float, measurement: float, device: str) -> int:
    """How many calls take at least `measurement` seconds. first: what the first one took, which may be no guide."""
    calls = 1
    while first < LONG and (taken := seconds(contender, calls, device)) < measurement:
        calls = max(2 * calls, math.ceil(calls * measurement / taken))
    return calls


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector sleeps inside the block, and what was there before is left out when it is called."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def alternate(
    contenders: Mapping[str, Contender], calls: Mapping[str, int], effort: Effort, device: str
) -> dict[str, list[float]]:
    """The seconds that a call of each contender takes, round by round; `calls` says how many are measured together."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle, rounds = list(contenders), random.Random(0).shuffle, 0
    with no_garbage_collection():
        start = time.perf_counter()
        while rounds < effort.rounds or time.perf_counter() - start < effort.seconds:
            shuffle(order)
            for name in order:
                gc.collect()
                taken[name].append(seconds(contenders[name], calls[name], device) / calls[name])
            rounds += 1
    return taken


def spread(column: str, values: Sequence[float]) -> dict[str, float]:
    """The median, and the 20 % and 80 % quantiles, as columns."""
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return {column: statistics.median(values), f"{column}_20": low, f"{column}_80": high}


# --- memory ---------------------------------------------------------------------------------------------------------


def saved_bytes(contender: Contender) -> int:
    """What autograd keeps in one call: each storage once, without the model's parameters and buffers."""
    state = [] if contender.model is None else [*contender.model.parameters(), *contender.model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in state}
    kept: dict[int, torch.UntypedStorage] = {}  # held until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    arguments = contender.prepare()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        contender.run(*arguments)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(contender: Contender, device: str) -> int:
    """How far one call drives up the memory that torch has allocated, its result included."""
    arguments = contender.prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = contender.run(*arguments)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = contender.run(*arguments)  # noqa: F841 (alive until the record ends)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


# --- a case ---------------------------------------------------------------------------------------------------------


def by(implementation: str, run: Callable[..., T]) -> Callable[..., T]:
    """`run` with every operation by one implementation."""

    def running(*arguments: Any) -> T:
        with ops.use(implementation):
            return run(*arguments)

    return running


def before(name: str) -> str:
    """What a contender of ours, "loralib" or "loralib, …", is called when the earlier version is it; empty for all others."""
    ours, comma, variant = name.partition(", ")
    return BEFORE + comma + variant if ours == OURS else ""


def earlier(build: Build, case: Case, options: Options) -> dict[str, Contender]:
    """The contenders of ours, made by the earlier version from the same random numbers; or one that says why it cannot be."""
    library = options.before
    if library is None:
        return {}
    try:
        with torch.random.fork_rng():
            contenders = build(case, options.device, library)
    except (AttributeError, TypeError, library.LoRAError) as error:
        return {BEFORE: Contender(failing(str(error)))}
    return {before(name): contender for name, contender in contenders.items() if before(name)}


def failing(reason: str) -> Callable[..., object]:
    """What cannot be run."""

    def run(*arguments: Any) -> object:
        raise RuntimeError(reason)

    return run


def timed(build: Build, memory: bool = True) -> Callable[[Any, Options], list[Row]]:
    """How a benchmark measures whose contenders `build` makes for a case, a device and a version of ours. memory: count it."""

    def measure(case: Case, options: Options) -> list[Row]:
        old = earlier(build, case, options)
        contenders = dict(build(case, options.device, loralib))
        if not options.others:
            reference = next(iter(contenders))
            contenders = {name: each for name, each in contenders.items() if name == reference or before(name)}
        if options.reference:
            contenders[REFERENCE_OPS] = replace(contenders[OURS], run=by("reference", contenders[OURS].run))
        return rows(case, contenders | old, options, memory)

    return measure


def first_call(contender: Contender, device: str) -> tuple[float, str]:
    """How long it takes; or why the contender cannot do it at all."""
    try:
        return seconds(contender, 1, device), ""
    except RuntimeError as error:
        return math.inf, str(error).partition("\n")[0] or type(error).__name__


def rows(case: Case, contenders: Mapping[str, Contender], options: Options, memory: bool = True) -> list[Row]:
    """A row for every contender. That a peer fails is a result, its `note`; ours and the first one, the reference, must not.

    milliseconds: median of a call. ratio: to the reference. speedup: how many times faster than this contender ours is.
    saved_share, peak_share: which part of its bytes ours needs. calls: how many were measured together, `rounds` times.
    to_before, peak_to_before: the time and the peak of ours over those of the earlier version, where that is a contender.
    """
    reference, device, effort = next(iter(contenders)), options.device, options.effort
    first = {name: first_call(contender, device) for name, contender in contenders.items()}
    notes = {name: note for name, (_, note) in first.items()}
    if failed := [f"{name}: {notes[name]}" for name in (reference, OURS) if notes.get(name)]:
        raise RuntimeError("; ".join(failed))
    able = {name: contender for name, contender in contenders.items() if not notes[name]}
    saved = {name: saved_bytes(contender) for name, contender in able.items()} if memory else {}
    peak = {name: peak_bytes(contender, device) for name, contender in able.items()} if memory else {}
    calls = {name: enough_calls(contender, first[name][0], effort.measurement, device) for name, contender in able.items()}
    taken = alternate(able, calls, effort, device)

    def to_before(name: str) -> Row:
        if (old := before(name)) not in able:
            return dict.fromkeys(("to_before", "to_before_20", "to_before_80", "peak_to_before"))
        peaks = {"peak_to_before": peak[name] / peak[old] if memory and peak[old] else None}
        return spread("to_before", quotients(taken[name], taken[old])) | peaks

    def figures(name: str) -> Row:
        own, base = taken[name], taken[reference]
        return {
            "milliseconds": 1e3 * statistics.median(own),
            **spread("ratio", quotients(own, base)),
            "speedup": statistics.median(quotients(own, taken[OURS])) if OURS in taken else None,
            **({"saved_bytes": saved[name], "saved_share": share(saved, name)} if memory else {}),
            **({"peak_bytes": peak[name], "peak_share": share(peak, name)} if memory else {}),
            **(to_before(name) if options.before else {}),
            **able[name].facts(statistics.median(own)),
            "calls": calls[name],
        }

    columns = dict.fromkeys(figures(reference))
    return [
        {"group": case.group, "case": case.label, **asdict(case), "contender": name}
        | (figures(name) if name in able else columns)
        | {"rounds": len(taken[reference]), "threads": torch.get_num_threads(), "note": notes[name]}
        for name in contenders
    ]


def quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Their ratios, round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def share(sizes: Mapping[str, int], name: str) -> float | None:
    """Which part of a contender's bytes ours needs, where it needs any."""
    return sizes[OURS] / sizes[name] if OURS in sizes and sizes[name] else None
