"""What merging an adapter into a checkpoint writes: which tensors to which files, and what is done to each.

Everything is checked here, before anything is written: names, shapes, dtypes, tied weights.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.expert_forms import in_form_of
from ..adapters.soundness import problems
from ..adapters.token_rows import TokenRows
from ..choices import TiedWeights
from ..errors import FormatError
from ..formats.validation import FLOATS
from ..storage.safetensors import CODES, DTYPES
from ..surgery.tied_copies import is_same, was_asked_for
from ..tensors import same_bits
from .base_weights import locate_in_files
from .checkpoint import SAFE, Checkpoint
from .classifiers import config_with_head, of_outputs
from .layouts import Located
from .merge_blocks import Change
from .names import Renaming, Tie, tie_of


@dataclass
class Target:
    """A tensor of the output: the tensor it comes from (none, where it is new), and what is done to it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str = ""
    changes: list[Change] = field(default_factory=list)
    value: Tensor | None = None
    rows: TokenRows | None = None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize

    @property
    def is_copy(self) -> bool:
        """Whether it is the source, byte for byte."""
        return not self.changes and self.value is None and self.rows is None


@dataclass(frozen=True)
class Plan:
    """All that is to be written. files: by name, what each holds. config: what `config.json` then says."""

    checkpoint: Checkpoint
    files: Mapping[str, list[Target]]
    config: Mapping[str, Any]
    untied: bool

    def targets(self) -> list[Target]:
        """The tensors of all files."""
        return [target for held in self.files.values() for target in held]

    @property
    def changes_config(self) -> bool:
        """Whether `config.json` differs from the base's."""
        return self.config != self.checkpoint.config

    @property
    def changes_architecture(self) -> bool:
        """Whether it names another class."""
        return self.config.get("architectures") != self.checkpoint.config.get("architectures")


def planned(checkpoint: Checkpoint, adapter: Adapter, tied: TiedWeights, labels: Sequence[str] | None = None) -> Plan:
    """What merging `adapter` into `checkpoint` writes; every shape and name has been checked then. labels: as in
    `config_with_head`."""
    if checkpoint.is_quantized:
        raise FormatError(
            f"{checkpoint.path} is quantized; merge into the weights that it was made from, and quantize the result again. "
            "Nothing was written."
        )
    _check_sound(adapter)
    adapter = in_form_of(adapter, {name: place.shape for name, place in checkpoint.tensors.items()})
    config = config_with_head(checkpoint.config, adapter, labels)
    tie = tie_of(checkpoint)
    located, rename = locate_in_files(adapter, checkpoint, tie)
    targets = {name: Target(name, place.dtype, place.shape, name) for name, place in checkpoint.tensors.items()}
    full = {_place(name, rename, targets, tie): tensor for name, tensor in _own_tensors(checkpoint, adapter, rename, tie)}
    untied = _untie(checkpoint, located, tie, tied, full, targets)
    for name, update in adapter.layers.items():
        targets[located[name].tensor].changes.append(Change(update, located[name].layout))
    if wrong := sorted(t.name for t in targets.values() if t.changes and DTYPES[t.dtype] not in FLOATS):
        raise FormatError(
            f"{wrong[0]!r} is stored as {targets[wrong[0]].dtype}, to which nothing can be added. Nothing was written."
        )
    if tie and not untied and tie.head not in targets:
        full.pop(tie.head, None)  # the same as the embedding, to which it stays tied
    added = _put_full(checkpoint, full, targets, {_place(name, rename, targets, tie) for name in of_outputs(adapter)})
    for name, rows in adapter.rows.items():
        place = rename(name)
        _check_rows(checkpoint, targets, place, rows)
        targets[place].rows = rows
        if tie and place == tie.embedding and tie.head in targets:
            targets[tie.head].rows = rows
    if rename.off and (added or untied):
        for target in targets.values():
            own = target.name in added or (tie is not None and target.name == tie.head)
            target.name = target.name if own else rename.off + target.name
    config |= {"tie_word_embeddings": False} if untied else {}
    return Plan(checkpoint, _by_file(checkpoint, list(targets.values())), config, untied)


def _check_sound(adapter: Adapter) -> None:
    """`FormatError` when a number of `adapter` is NaN or infinite, or makes others so."""
    for name, problem in problems(adapter.layers, adapter.tensors, adapter.rows):
        raise FormatError(f"{name!r} of the adapter cannot be merged: {problem}. Nothing was written.")


def _own_tensors(checkpoint: Checkpoint, adapter: Adapter, rename: Renaming, tie: Tie | None) -> list[tuple[str, Tensor]]:
    """The tensors of `adapter`, without one that the model ties to another and has itself, to the last bit."""
    pair = {tie.embedding, tie.head} if tie else set()
    held = {name for name in adapter.tensors if rename(name) in pair}
    copies = set()
    for name in held if len(held) == 1 else ():
        base = checkpoint.tensor(next(known for known in (rename(name), *sorted(pair)) if known in checkpoint.tensors))
        copies = {name} if not was_asked_for(adapter, name) and is_same(adapter.tensors[name], base) else set()
    return [(name, tensor) for name, tensor in adapter.tensors.items() if name not in copies]


def _place(name: str, rename: Renaming, targets: Mapping[str, Target], tie: Tie | None) -> str:
    """What the tensor `name` of the adapter is called in the checkpoint; its own name, where that has none like it."""
    held = {*targets, *([tie.head] if tie else [])}
    return next((known for known in (rename(name), name) if known in held), name)


def _untie(
    checkpoint: Checkpoint,
    located: Mapping[str, Located],
    tie: Tie | None,
    tied: TiedWeights,
    full: Mapping[str, Tensor],
    targets: dict[str, Target],
) -> bool:
    """Make the tied tensors two, where one of them is changed and the other is not, or is otherwise; `FormatError` when that
    was not asked for. full: the tensors that were trained in full."""
    if tie is None:
        return False
    pair = {tie.embedding, tie.head}
    adapted = pair & {found.tensor for found in located.values()}
    if not adapted and (not pair & full.keys() or (pair <= full.keys() and same_bits(full[tie.embedding], full[tie.head]))):
        return False
    if tied == "refuse":
        changed = " and ".join(sorted(adapted | (pair & full.keys())))
        raise FormatError(
            f"{checkpoint.path} ties {tie.head!r} to {tie.embedding!r}, and the adapter changes {changed} by itself; untie "
            "them, which stores both: tied='untie' (--tied untie). Nothing was written."
        )
    targets.setdefault(tie.head, replace(targets[tie.embedding], name=tie.head, changes=[]))
    return True


def _put_full(
    checkpoint: Checkpoint, full: Mapping[str, Tensor], targets: dict[str, Target], of_outputs: Set[str]
) -> list[str]:
    """Let the tensors `full` take the places of the base's; the names of those that have none there, new ones, are returned.

    of_outputs: tensors whose first dimension may be another one in the base.
    """
    added, problems = [], []
    for name, tensor in full.items():
        if name not in targets and tensor.dtype not in CODES:
            problems.append(f"{name}: a tensor of {tensor.dtype}")
        elif name not in targets:
            targets[name] = Target(name, CODES[tensor.dtype], tuple(tensor.shape), value=tensor)
            added.append(name)
        elif name in of_outputs and not targets[name].changes and tensor.shape[1:] == targets[name].shape[1:]:
            targets[name].shape, targets[name].value = tuple(tensor.shape), tensor
        elif tuple(tensor.shape) != targets[name].shape:
            problems.append(f"{name}: shape {tuple(tensor.shape)} in the adapter, {targets[name].shape} in the checkpoint")
        else:
            targets[name].value = tensor
    if problems:
        raise FormatError(f"The adapter does not fit {checkpoint.path}: {'; '.join(problems)}. Nothing was written.")
    return added


def _check_rows(checkpoint: Checkpoint, targets: Mapping[str, Target], name: str, rows: TokenRows) -> None:
    target = targets.get(name)
    if target is None:
        raise FormatError(f"{checkpoint.path} has no {name!r}, of which the adapter replaces rows. Nothing was written.")
    last, width = max(rows.indices, default=-1), tuple(rows.values.shape[1:])
    if target.shape[1:] != width or last >= target.shape[0]:
        raise FormatError(
            f"The adapter replaces rows up to {last}, of shape {width}, in {name!r} of shape {target.shape}; resize the "
            "embeddings of the base model first. Nothing was written."
        )


def _by_file(checkpoint: Checkpoint, targets: list[Target]) -> dict[str, list[Target]]:
    """The targets by the name of the file that holds them; new ones go to the last file."""
    alone = len(checkpoint.files) == 1 and checkpoint.path.is_file()
    names = {file: "model" + SAFE if alone else _new_name(file) for file in checkpoint.files}
    files: dict[str, list[Target]] = {name: [] for name in names.values()}
    for target in targets:
        file = checkpoint.tensors[target.source].file if target.source else checkpoint.files[-1]
        files[names[file]].append(target)
    return files


def _new_name(file: Path) -> str:
    """What a file of weights is called as a safetensors file.

    >>> _new_name(Path("pytorch_model-00001-of-00002.bin")), _new_name(Path("diffusion_pytorch_model.bin"))
    ('model-00001-of-00002.safetensors', 'diffusion_pytorch_model.safetensors')
    """
    name = file.with_suffix(SAFE).name
    return "model" + name.removeprefix("pytorch_model") if name.startswith("pytorch_model") else name
