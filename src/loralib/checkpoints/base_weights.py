"""The weights of a model, in memory or in files, and which of them are matrices that an update can change.

A model's modules tell what kind of layer a weight belongs to. Files do not, so there the shape and the name decide: a
convolution has three to five dimensions, an embedding one of the usual names (`architectures.EMBEDDINGS`), and a weight of
two dimensions is otherwise a linear layer's, stored as (in, out) where transformers' `Conv1D` has it so, as in GPT-2.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.low_rank import SVD
from ..adapters.updates import ConvolutionUpdate, EmbeddingUpdate, LoRAUpdate, ProjectionUpdate
from ..architectures import PROJECTIONS, is_embedding
from ..errors import LayerError
from ..layers import handler_of
from ..surgery.module_tree import unwrap
from ..surgery.survey import Survey
from .checkpoint import Checkpoint, open_checkpoint
from .sites import is_conv1d, tie_of

Source = nn.Module | str | os.PathLike[str]


@dataclass(frozen=True)
class Piece:
    """A weight that an update can change: all of the tensor, or `rows` rows of it from `start` on, and how it is to be read."""

    layer: str
    tensor: str
    kind: type[LoRAUpdate] = LoRAUpdate
    transposed: bool = False
    groups: int = 1
    start: int = 0
    rows: int | None = None

    def part(self, W: Tensor) -> Tensor:
        """Its rows of the tensor."""
        return W if self.rows is None else W[self.start : self.start + self.rows]

    def matrix(self, W: Tensor) -> Tensor:
        """The weight as a matrix (out, in · kernel)."""
        if self.kind is ConvolutionUpdate and self.transposed:  # stored as (d, k/g, *)
            matrix: Tensor = W.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
            return matrix
        return W.t() if self.transposed or self.kind is EmbeddingUpdate else W.flatten(1)

    def update(self, svd: SVD, shape: tuple[int, ...], dtype: torch.dtype) -> LoRAUpdate:
        """The update, with s = 1, whose ΔW is what `svd` describes; shape: of the stored weight."""
        B, A = (factor.to(dtype).contiguous() for factor in svd.factors())
        r, fields = len(A), {}
        if self.kind is ConvolutionUpdate:
            kernel = shape[2:]
            A, B = A.reshape(r, -1, *kernel), B.reshape(-1, r, *[1] * len(kernel))
            fields = {"groups": self.groups, "transposed": self.transposed}
        elif len(shape) > 2:
            A = A.reshape(r, *shape[1:])
        return self.kind(A, B, r, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Weights:
    """shapes: of all tensors by name, tied ones once. tensor: gives one. pieces: those that updates can change, of a tied
    tensor one for each layer that has it. what: what they are called."""

    what: str
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]
    pieces: tuple[Piece, ...]
    checkpoint: Checkpoint | None = None


def weights_of(source: Source) -> Weights:
    """Those of a model, or of a folder or file of weights. `LayerError` for a model that carries updates, `FormatError` for
    files that are none."""
    if isinstance(source, nn.Module):
        return _of_model(unwrap(source))
    checkpoint = open_checkpoint(Path(source))
    shapes = {name: place.shape for name, place in checkpoint.tensors.items()}
    pieces = tuple(_told_by_names(shapes, checkpoint.config))
    if (tie := tie_of(checkpoint)) and tie.head not in shapes:
        pieces += (Piece(tie.head.removesuffix(".weight"), tie.embedding),)
    return Weights(str(checkpoint.path), shapes, checkpoint.tensor, pieces, checkpoint)


def _of_model(model: nn.Module) -> Weights:
    read = Survey(model)
    if read.adapted:
        raise LayerError(f"{next(iter(read.adapted))!r} carries an update; merge it for good or eject it, and compare then.")
    named = read.tensors
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    tensors = {name: named[name].detach() for name in named if first[id(named[name])] == name}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = [piece for piece in _told_by_modules(read) if piece.tensor in named]
    pieces = tuple(replace(piece, tensor=first[id(named[piece.tensor])]) for piece in known)
    return Weights(type(model).__name__, shapes, tensors.__getitem__, pieces)


def _told_by_modules(read: Survey) -> Iterator[Piece]:
    attentions = {name for name, module in read.modules.items() if isinstance(module, nn.MultiheadAttention)}
    for name, module in read.sites.items():
        owner, _, leaf = name.rpartition(".")
        treated = handler_of(type(module))
        if owner in attentions:
            attention = read.modules[owner]
            yield _of_attention(name, owner, leaf, attention.embed_dim, bool(attention._qkv_same_embed_dim))  # type: ignore[arg-type]
        elif treated is not None and not isinstance(module, nn.MultiheadAttention):
            kind = treated.update_classes[0]
            conv: Any = module
            is_conv = kind is ConvolutionUpdate
            transposed = conv.transposed if is_conv else bool(getattr(treated, "fan_in_fan_out", False))
            yield Piece(name, f"{name}.weight", kind, transposed, conv.groups if is_conv else 1)


def _of_attention(name: str, owner: str, leaf: str, width: int, packed: bool) -> Piece:
    if leaf not in PROJECTIONS:
        return Piece(name, f"{name}.weight", ProjectionUpdate)
    if not packed:
        return Piece(name, f"{name}_weight", ProjectionUpdate)
    return Piece(name, f"{owner}.in_proj_weight", ProjectionUpdate, start=PROJECTIONS.index(leaf) * width, rows=width)


def _told_by_names(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[Piece]:
    attentions = {name.rpartition(".")[0] for name in shapes if name.endswith((".in_proj_weight", ".q_proj_weight"))}
    for tensor, shape in shapes.items():
        layer, _, leaf = tensor.rpartition(".")
        owner = layer.rpartition(".")[0]
        if layer in attentions and leaf == "in_proj_weight":
            for part in PROJECTIONS:
                yield _of_attention(f"{layer}.{part}", layer, part, shape[0] // 3, packed=True)
        elif layer in attentions and leaf.removesuffix("_weight") in PROJECTIONS:
            yield Piece(f"{layer}.{leaf.removesuffix('_weight')}", tensor, ProjectionUpdate)
        elif leaf == "weight" and layer:
            if owner in attentions:
                yield Piece(layer, tensor, ProjectionUpdate)
            elif len(shape) == 2:
                yield Piece(layer, tensor, EmbeddingUpdate if is_embedding(layer) else LoRAUpdate, is_conv1d(layer, config))
            elif 3 <= len(shape) <= 5:
                yield Piece(layer, tensor, ConvolutionUpdate)
