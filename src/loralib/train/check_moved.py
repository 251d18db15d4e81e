"""Whether LoRA factors change at all: their bits after some steps of the optimizer, next to those at the start of training.

`CheckTrained` asks for gradients; a factor that has one and that the optimizer does not hold, or whose rate is 0, stays as it
is all the same. What is kept of a factor is one number.
"""

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import RunError
from ..layers import AdaptedLayer
from ..surgery.survey import Survey
from ..tensors import kind
from .rich_text import say

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value
_SHOWN = 8

Fingerprints = dict[str, list[int]]


def fingerprint(factor: Tensor) -> int | None:
    """A number that is another one when any bit of `factor` changes (but for coincidence); None where its values are elsewhere.

    >>> before = fingerprint(torch.tensor([1.0, -1.0]))
    >>> before == fingerprint(torch.tensor([1.0, -1.0])), before == fingerprint(torch.tensor([-1.0, 1.0]))
    (True, False)
    """
    values = factor.detach()
    if kind(values) == "sharded":
        values = values.to_local()  # type: ignore[attr-defined]
    if not values.numel() or values.is_meta:
        return None
    bits = values.contiguous().reshape(-1).view(_BITS[values.itemsize]).long()
    return int((bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum())


def fingerprints(adapted: Mapping[str, AdaptedLayer]) -> Fingerprints:
    """Those of the factors of each layer; none for factors whose values are elsewhere."""
    found = {name: map(fingerprint, layer.adapter_parameters().values()) for name, layer in adapted.items()}
    return {name: [one for one in own if one is not None] for name, own in found.items()}


class CheckMoved(TrainerCallback):
    """After some steps of the optimizer: a `RunError` when no LoRA factor has moved, a warning when some layers have not.

    Steps of a warm-up whose rate is still 0, and those that float16's loss scaling skips, do not count.
    """

    def __init__(self, console: Console, steps: int = 10):
        self.console, self.steps = console, steps

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the factors as they are now: fresh, or those of the checkpoint that training goes on from."""
        self.counted = 0
        self.start = fingerprints(Survey(kwargs["model"]).adapted)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step, and look at the factors once: after enough steps, or after the last one."""
        if not self.start:
            return
        self.counted += _can_move(kwargs.get("optimizer"))
        if self.counted >= self.steps or state.global_step + 1 >= state.max_steps:
            read, start, self.start = Survey(kwargs["model"]), self.start, {}
            still, known = unmoved(start, fingerprints(read.adapted), args)
            if still and still == known and self.counted:
                raise RunError(*_nothing_moved(read, self.counted, kwargs.get("optimizer")))
            if still and state.is_world_process_zero:
                say(self.console, f"warning: {_message(read, still, self.counted)}")


def unmoved(start: Fingerprints, now: Fingerprints, args: TrainingArguments) -> tuple[list[str], list[str]]:
    """The layers whose factors are all as they were, in every process, and all layers whose factors can be seen."""
    names = list(start)
    found = torch.tensor([[bool(start[name]), start[name] != now.get(name)] for name in names], dtype=torch.int32)
    if args.world_size > 1:
        found = found.to(args.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    known = {name: bool(moved) for name, (seen, moved) in zip(names, found.tolist(), strict=True) if seen}
    return [name for name, moved in known.items() if not moved], list(known)


def _can_move(optimizer: Any) -> bool:
    """Whether the step that `optimizer` has just made could change anything; a rate that is meant to be 0 counts, too."""
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return True
    warming = any(float(group.get("initial_lr", 0)) for group in groups) and not any(float(group["lr"]) for group in groups)
    return not warming and not getattr(optimizer, "step_was_skipped", False)


def _nothing_moved(read: Survey, steps: int, optimizer: Any) -> tuple[str, str]:
    """What is wrong when no factor has moved, with what can be seen of why, and what to do."""
    factors = [factor for layer in read.adapted.values() for factor in layer.adapter_parameters().values()]
    groups = getattr(optimizer, "param_groups", None) or []
    held = {id(parameter) for group in groups for parameter in group["params"]}
    rate = max((float(group["lr"]) for group in groups), default=0.0)
    frozen, owned = sum(not p.requires_grad for p in factors), sum(id(p) in held for p in factors)
    return (
        f"no LoRA factor of {type(read.model).__name__} has moved in {_steps(steps)}: of {len(factors)} factors {frozen} are "
        f"frozen and {owned} are in the optimizer, whose learning rate is {rate:g}. The usual causes are frozen factors, an "
        "optimizer that was made before injection, a learning rate of 0 and gradient checkpointing without input gradients",
        "call mark_only_lora_as_trainable(model) before the optimizer is made, and use checkpointing with use_reentrant=False "
        "or after model.enable_input_require_grads()",
    )


def _message(read: Survey, still: list[str], steps: int) -> str:
    """The message about layers that have not moved."""
    shown = "; ".join(f"{name}{_why(read.adapted.get(name))}" for name in still[:_SHOWN])
    more = f"; and {len(still) - _SHOWN} more" if len(still) > _SHOWN else ""
    layers = "1 layer have" if len(still) == 1 else f"{len(still)} layers have"
    why = "Layers that no row has needed yet, such as experts, may still move."
    if not steps:
        why = "The learning rate of the warm-up was 0 in each step, or float16's loss scaling skipped them all."
    return f"the LoRA factors of {layers} not moved in {_steps(steps)}: {shown}{more}. {why}"


def _why(layer: AdaptedLayer | None) -> str:
    """What can be seen of why a layer has not moved."""
    if layer is None or any(factor.requires_grad for factor in layer.adapter_parameters().values()):
        return " (merged)" if layer is not None and layer.merged else ""
    return " (frozen)"


def _steps(number: int) -> str:
    return {0: "any step", 1: "1 step"}.get(number, f"{number} steps")
