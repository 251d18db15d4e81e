"""Checkpoints of loralib 0.1, loaded into a model with LoRA layers.

0.1 saved three kinds: the factors alone (`lora_state_dict`), the factors with a head, and the whole state dict. A whole one
that was saved in evaluation mode holds *merged* weights, W + ΔW, with the factors, and nothing in it says so; merged again
they would hold ΔW twice. The caller may say which it is; otherwise it is found by comparison with the weights that the model
has, if those are the pretrained ones.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..arguments import as_path
from ..errors import AttachError, FormatError
from ..layers import AdaptedLayer, ConvLoRA, delta_of, quiet_state_dict, relation, rename_legacy_keys
from ..storage.pickled import read_state_dict
from .module_tree import join
from .survey import Survey
from .trainable import factor_names, is_factor
from .wrappers import plain_name

_OLD_BUFFERS = ("position_ids", "masked_bias")  # transformers once saved them


@dataclass(frozen=True)
class LegacyReport:
    """What `load_legacy` found and did.

    Attributes:
        path: The checkpoint.
        layers: The layers whose factors were loaded.
        extra: Other tensors that were loaded, such as a head or the base weights.
        merged: Whether the base weights were saved merged; None when the file holds none.
        kept: Layers whose base weight the model had already, bit for bit.
        subtracted: Layers whose ΔW was subtracted from a merged weight, which is exact but for rounding.
        skipped: Buffers of old transformers models that the model no longer has.

    Example:
        >>> import pathlib
        >>> print(lora.LegacyReport(pathlib.Path("old.pt"), layers=("query", "value"), extra=(), merged=None))
        old.pt: the factors of 2 layers and 0 other tensors; no base weights.
    """

    path: Path
    layers: tuple[str, ...]
    extra: tuple[str, ...]
    merged: bool | None
    kept: tuple[str, ...] = ()
    subtracted: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.path.name}: the factors of {_count(self.layers, 'layer')} and {_count(self.extra, 'other tensor')}"]
        if self.merged is None:
            parts.append("no base weights")
        elif self.merged:
            kept = f"{_count(self.kept, 'layer')} kept the model's own" if self.kept else ""
            subtracted = f"from {_count(self.subtracted, 'layer')} ΔW was subtracted" if self.subtracted else ""
            parts.append("base weights saved merged: " + ", ".join(filter(None, (kept, subtracted))))
        else:
            parts.append("base weights saved unmerged")
        if self.skipped:
            parts.append(f"skipped {_count(self.skipped, 'buffer')} that the model no longer has")
        return "; ".join(parts) + "."


def _count(names: tuple[str, ...], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def load_legacy(model: nn.Module, path: str | os.PathLike[str], assume_merged: bool | None = None) -> LegacyReport:
    """Load a checkpoint of loralib 0.1 into `model`, which has its LoRA layers already.

    Build them, or inject them with the rank and the lora_alpha of the checkpoint's training, which it does not say. Where the
    model has the very weight that the file has, it keeps it; else ΔW is subtracted once, in at least float32.

    Args:
        model: A model with LoRA layers.
        path: The checkpoint, a file that `torch.save` wrote. Nothing in it is executed.
        assume_merged: Whether the base weights in the file were saved merged, that is in evaluation mode. Default: found by
            comparison with the model's own weights, where those are the pretrained ones; a file without base weights needs
            neither.

    Returns:
        What was found and done.

    Raises:
        FormatError: When the file cannot be read safely.
        AttachError: When the checkpoint is not for this model, listing everything, or when it is unclear whether it is merged.
            The model is then unchanged.
        LayerError: Inside a `disabled` block.
        ArgumentError: When `model` is not a module, or `path` not a path.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(lora.Linear(4, 4, r=2))
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        ...     torch.save(lora.lora_state_dict(model), file.name)
        ...     report = lora.load_legacy(model, file.name)
        >>> report.layers, report.merged
        (('0',), None)
    """
    read, path = Survey(model), as_path(path)
    read.check_enabled("loaded into")
    state = read_state_dict(path)
    for name, module in read.modules.items():
        if isinstance(module, ConvLoRA):
            rename_legacy_keys(state, f"{name}." if name else "")
    held_under = {plain_name(model, key): (key, tensor) for key, tensor in quiet_state_dict(model, keep_vars=True).items()}
    own = {name: tensor for name, (_, tensor) in held_under.items()}
    skipped = tuple(name for name in state if name not in own and _is_old_buffer(name))
    state = {name: tensor for name, tensor in state.items() if name not in skipped}
    _check_fit(read, path, state, own)
    held = {name: layer for name, layer in read.adapted.items() if join(name, "weight") in state}
    deltas = {name: _delta(layer, name, state) for name, layer in held.items()}
    relations = {n: relation(state[join(n, "weight")], own[join(n, "weight")], delta) for n, delta in deltas.items()}
    merged = (_found_merged(path, relations) if assume_merged is None else assume_merged) if held else None
    kept = tuple(name for name in held if merged and relations[name] == "merged")
    subtracted = tuple(name for name in held if merged and name not in kept)
    for name in kept:
        state[join(name, "weight")] = own[join(name, "weight")].detach()
    for name in subtracted:
        W = state[join(name, "weight")]
        state[join(name, "weight")] = (W.to(deltas[name]) - deltas[name]).to(W.dtype)
    model.load_state_dict({held_under[name][0]: tensor for name, tensor in state.items()}, strict=False)
    factors = factor_names(read)
    others = tuple(name for name in state if name not in factors)
    return LegacyReport(path, tuple(read.adapted), others, merged, kept, subtracted, skipped)


def _is_old_buffer(name: str) -> bool:
    """Whether transformers once saved a buffer of this name; GPT-2's attention had its causal mask as `attn.bias`."""
    return name.rpartition(".")[2] in _OLD_BUFFERS or name.endswith(".attn.bias")


def _check_fit(read: Survey, path: Path, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    stored = [name for name in state if is_factor(name)]
    if not stored:
        raise FormatError(f"{path} holds no LoRA factors (tensors named lora_A and lora_B); load it with load_state_dict.")
    where = type(read.model).__name__
    if not read.adapted:
        A = state[stored[0]]
        ends = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in stored})
        raise AttachError(
            f"{where} has no LoRA layers: inject a LoRAConfig(r=…, lora_alpha=…, target_modules={ends}) "
            f"with the values of the checkpoint's training, whose factors begin with {tuple(A.shape)}. Nothing was changed."
        )
    factors = factor_names(read)
    problems = [f"{name}: in the checkpoint, not in the model" for name in state if name not in own]
    needed = [name for name in own if name in factors]
    if any(join(name, "weight") in state for name in read.adapted):
        needed += [name for name, tensor in own.items() if isinstance(tensor, nn.Parameter) and name not in factors]
    problems += [f"{name}: in the model, not in the checkpoint" for name in needed if name not in state]
    problems += [
        f"{name}: shape {tuple(state[name].shape)} in the checkpoint, {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise AttachError(f"{path} does not fit {where}: {_listed(problems)}. Nothing was changed.")


def _listed(problems: list[str]) -> str:
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")


def _delta(layer: AdaptedLayer, name: str, state: dict[str, Tensor]) -> Tensor:
    return delta_of(layer, {key: state[join(name, key)] for key in layer.adapter_parameters()}, layer.pristine_weight)


def _found_merged(path: Path, relations: dict[str, str]) -> bool:
    found = set(relations.values()) - {"either"}
    if found <= {"unmerged"}:
        return False
    if found == {"merged"}:
        return True
    other = next(name for name, relation in relations.items() if relation not in ("either", "unmerged"))
    raise AttachError(
        f"{path} holds base weights, and it is unclear whether they were saved merged (in evaluation mode): that of {other!r} "
        "is neither the model's own nor that with the update. Load the pretrained weights into the model first, or say "
        "assume_merged=True or False. Nothing was changed."
    )
