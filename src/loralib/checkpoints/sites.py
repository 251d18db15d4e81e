"""Where the updates of an adapter land in a checkpoint: which tensor, which rows of it, in which layout.

An adapter's names are those of the model that was trained. A checkpoint's may have a prefix more or less, since a base model
is saved as it is and as a part of a larger one (`h.0.attn`, `transformer.h.0.attn`): one change of prefix must serve all.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import architectures
from ..adapters.updates import ConvolutionUpdate, EmbeddingUpdate, LegacyConvolutionUpdate, LoRAUpdate, ProjectionUpdate
from ..architectures import PROJECTIONS, is_embedding
from ..errors import FormatError
from ..patterns import nearest
from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Site:
    """tensor: its name. start: the row of it where the outputs begin. transposed: whether it is stored as (in, out)."""

    tensor: str
    start: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class Tie:
    """Two tensors that are one in the model, of which a checkpoint need hold only the first."""

    embedding: str
    head: str


@dataclass(frozen=True)
class Landing:
    """sites: by layer of the adapter. rename: from the adapter's names to the checkpoint's. prefix: what a checkpoint of a base
    model lacks before its names, as the adapter has them; often nothing."""

    sites: Mapping[str, Site]
    rename: Callable[[str], str]
    prefix: str = ""


def is_conv1d(layer: str, config: Mapping[str, Any]) -> bool:
    """Whether `layer` of a model with this `config.json` is a `Conv1D` of transformers, whose weight is (in, out).

    >>> is_conv1d("h.0.attn.c_attn", {"model_type": "gpt2"})
    True
    """
    return layer.rpartition(".")[2] in architectures.WITH_CONV1D.get(str(config.get("model_type")), ())


def tie_of(checkpoint: Checkpoint) -> Tie | None:
    """The embedding and the output layer that share a tensor, if `config.json` is that of a language model that ties them."""
    config = checkpoint.config
    names = [
        name
        for name in config.get("architectures") or ()
        if isinstance(name, str) and name.endswith(architectures.LANGUAGE_MODELS)
    ]
    if not names or config.get("tie_word_embeddings", True) is not True:
        return None
    size = config.get("vocab_size")
    embeddings = [
        name
        for name, place in checkpoint.tensors.items()
        if name.endswith(".weight")
        and is_embedding(name.removesuffix(".weight"))
        and len(place.shape) == 2
        and place.shape[0] == size
    ]
    shared = [name for name in embeddings if name.rpartition(".")[0].rpartition(".")[2] == "shared"]
    if len(embeddings) != 1 and len(shared) != 1:
        return None
    family = max((start for start in architectures.OUTPUT_LAYERS if names[0].startswith(f"{start}For")), key=len, default="")
    return Tie((shared or embeddings)[0], f"{architectures.OUTPUT_LAYERS.get(family, 'lm_head')}.weight")


def land(checkpoint: Checkpoint, layers: Mapping[str, LoRAUpdate], fan_in_fan_out: bool, tie: Tie | None = None) -> Landing:
    """Where `layers` land in `checkpoint`.

    fan_in_fan_out: what the adapter's configuration says of layers that store their weight as (in, out). A layer tied to
    another lands on its own name, whether the checkpoint holds that or not.
    Raises `FormatError` that lists every layer that is not there, and everything that has another shape.
    """
    rename, prefix = _renaming(checkpoint, layers, tie)
    places = {name: _tensor(checkpoint, rename(name), update, tie) for name, update in layers.items()}
    shapes = {name: _shape(checkpoint, tensor, tie) for name, (tensor, _) in places.items() if tensor}
    told = _told(shapes, layers, fan_in_fan_out, checkpoint.config)
    sites, problems = {}, []
    for name, update in layers.items():
        tensor, part = places[name]
        transposed = told(name)
        problem = _misfit(update, shapes[name], transposed, part) if transposed is not None else _UNDECIDED
        if problem:
            problems.append(f"{name}: {problem}")
        sites[name] = Site(tensor, (part or 0) * len(update.B), bool(transposed))
    if problems:
        raise FormatError(f"The adapter does not fit {checkpoint.path}: {_listed(problems)}. Nothing was written.")
    return Landing(sites, rename, prefix)


_UNDECIDED = "its weight is square, and nothing tells whether it is stored as (out, in) or (in, out)"


def _renaming(checkpoint: Checkpoint, layers: Mapping[str, LoRAUpdate], tie: Tie | None) -> tuple[Callable[[str], str], str]:
    """The change of names under which every layer is found, and the prefix that it takes off."""
    outer, held_by = ({name.partition(".")[0] for name in names} for names in (layers, checkpoint.tensors))
    changes = [("", ""), *((f"{first}.", "") for first in sorted(outer)), *(("", f"{first}.") for first in sorted(held_by))]
    missing: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        new = _changing(*change)
        missing[change] = [name for name, u in layers.items() if not _tensor(checkpoint, new(name), u, tie)[0]]
    found = [change for change in changes if not missing[change]]
    if len(found) == 1 or (found and found[0] == ("", "")):
        return _changing(*found[0]), found[0][0]
    if found:
        raise FormatError(
            f"{checkpoint.path} has the adapter's layers {len(found)} times, in {', '.join(repr(add) for _, add in found)}; "
            "rename the adapter's layers for one of them (Adapter.rename). Nothing was written."
        )
    best = min(missing.values(), key=len)
    held = [name.rpartition(".")[0] for name in checkpoint.tensors]
    raise FormatError(
        f"{checkpoint.path} lacks {len(best)} of the {len(layers)} layers that the adapter changes: {', '.join(best[:3])}"
        f"{' …' if len(best) > 3 else ''}; nearest there: {nearest(best[0], held)}. Nothing was written."
    )


def _changing(off: str, on: str) -> Callable[[str], str]:
    return lambda name: on + name.removeprefix(off)


def _tensor(checkpoint: Checkpoint, layer: str, update: LoRAUpdate, tie: Tie | None) -> tuple[str, int | None]:
    """The tensor that holds the weight of `layer`, empty when there is none, and which part of a packed one it is."""
    owner, _, leaf = layer.rpartition(".")
    if isinstance(update, ProjectionUpdate) and leaf in PROJECTIONS:
        if f"{owner}.in_proj_weight" in checkpoint.tensors:
            return f"{owner}.in_proj_weight", PROJECTIONS.index(leaf)
        return (f"{layer}_weight", None) if f"{layer}_weight" in checkpoint.tensors else ("", None)
    name = f"{layer}.weight"
    return (name, None) if name in checkpoint.tensors or (tie and name == tie.head) else ("", None)


def _shape(checkpoint: Checkpoint, tensor: str, tie: Tie | None) -> tuple[int, ...]:
    stored = tie.embedding if tie and tensor == tie.head and tensor not in checkpoint.tensors else tensor
    return checkpoint.tensors[stored].shape


def _told(
    shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, LoRAUpdate], fan_in_fan_out: bool, config: Mapping[str, Any]
) -> Callable[[str], bool | None]:
    """Whether the weight of a layer is stored as (in, out); None where that cannot be told."""
    conv1d = architectures.WITH_CONV1D.get(str(config.get("model_type")), ())
    linear = [name for name, update in layers.items() if _is_linear(update)]
    seen = {
        _kind_of(name): _by_shape(layers[name], shapes[name])
        for name in linear
        if _by_shape(layers[name], shapes[name]) is not None
    }

    def told(name: str) -> bool | None:
        if not _is_linear(layers[name]):
            return False
        by_shape = _by_shape(layers[name], shapes[name])
        if by_shape is not None:
            return by_shape
        if conv1d or fan_in_fan_out:
            return _kind_of(name) in conv1d or not conv1d
        return seen.get(_kind_of(name), None if any(seen.values()) and not config.get("model_type") else False)

    return told


def _kind_of(name: str) -> str:
    return name.rpartition(".")[2]


def _is_linear(update: LoRAUpdate) -> bool:
    others = EmbeddingUpdate | ConvolutionUpdate | LegacyConvolutionUpdate | ProjectionUpdate
    return not isinstance(update, others) and update.A.dim() == 2


def _matrix(update: LoRAUpdate) -> tuple[int, int]:
    """(out, in) of a linear layer's update."""
    widths = getattr(update, "widths", None)
    return (sum(widths) if widths else len(update.B)), update.A.shape[1]


def _by_shape(update: LoRAUpdate, shape: tuple[int, ...]) -> bool | None:
    k, d = _matrix(update)
    return None if k == d else shape == (d, k)


def _misfit(update: LoRAUpdate, shape: tuple[int, ...], transposed: bool, part: int | None) -> str | None:
    """Why `update` cannot be added to a weight of `shape`, or None."""
    expected = _expected(update, transposed)
    if part is not None:
        return None if shape == (3 * expected[0], *expected[1:]) else f"an update of {expected} for a third of {shape}"
    return None if shape == expected else f"an update of {expected} for a weight of {shape}"


def _expected(update: LoRAUpdate, transposed: bool) -> tuple[int, ...]:
    """The shape of the weight that `update` is for."""
    if isinstance(update, LegacyConvolutionUpdate):
        return tuple(update.weight_shape)
    if isinstance(update, EmbeddingUpdate):
        return (update.A.shape[1], len(update.B))
    if isinstance(update, ConvolutionUpdate) and update.transposed:
        inner = update.A.shape[1] * update.groups
        return (inner, len(update.B) // update.groups, *update.A.shape[2:])
    if _is_linear(update):
        k, d = _matrix(update)
        return (d, k) if transposed else (k, d)
    return (len(update.B), *update.A.shape[1:])


def _listed(problems: Iterable[str]) -> str:
    listed = list(problems)
    return "; ".join(listed[:8]) + (f"; and {len(listed) - 8} more" if len(listed) > 8 else "")
