"""Which tensor a layer's weight is in, and how it is stored there: according to a model's modules, or to files.

Files do not say what kind of layer a weight belongs to. An update does; without one, the shape and the name decide: a
convolution has three to five dimensions, an embedding one of the usual names (`architectures.EMBEDDINGS`), and a weight of two
dimensions is otherwise a linear layer's, stored as (in, out) where transformers' `Conv1D` has it so, as in GPT-2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import architectures
from ..adapters.convolution_updates import ConvolutionUpdate, LegacyConvolutionUpdate
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.layout import Layout
from ..adapters.updates import LoRAUpdate, ProjectionUpdate
from ..architectures import PROJECTIONS, is_embedding
from ..layers import ExpertWeight, ExpertWeightLoRA, Projection, handler_of
from ..surgery.module_tree import join
from ..surgery.survey import Survey

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

AS_IT_IS = Layout()


@dataclass(frozen=True)
class Located:
    """A layer's weight: the tensor that it is in, how it is stored there, and which kind of update changes it.

    groups: of a convolution.
    """

    tensor: str
    layout: Layout = AS_IT_IS
    kind: type[LoRAUpdate] = LoRAUpdate
    groups: int = 1


# --- by a model's modules -------------------------------------------------------------------------------------------


def by_modules(read: Survey) -> Iterator[tuple[str, Located]]:
    """The weights of the layers of a model that can carry updates; some of the tensors named may not be there."""
    for name, module in read.sites.items():
        handler = handler_of(type(module))
        if isinstance(module, Projection):
            packed = module.slot == "in_proj_weight"
            yield name, _projection(name, module.owner.embed_dim if packed else None)
        elif isinstance(module, ExpertWeight):
            yield name, Located(name, ExpertWeightLoRA.layout(module), ExpertsUpdate)
        elif handler is not None:
            groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
            yield name, Located(f"{name}.weight", handler.layout(module), handler.update_classes[0], groups)


def _projection(layer: str, width: int | None) -> Located:
    """The query, key or value projection `layer` of an `nn.MultiheadAttention`. width: of each of the three in a packed weight;
    None where each has a tensor of its own."""
    owner, _, leaf = layer.rpartition(".")
    if width is None:
        return Located(f"{layer}_weight", kind=ProjectionUpdate)
    layout = Layout(start=PROJECTIONS.index(leaf) * width, rows=width)
    return Located(join(owner, "in_proj_weight"), layout, ProjectionUpdate)


# --- by names, shapes and config.json -------------------------------------------------------------------------------


def is_conv1d(layer: str, config: Mapping[str, Any]) -> bool:
    """Whether `layer` of a model with this `config.json` is a `Conv1D` of transformers, whose weight is (in, out).

    >>> is_conv1d("h.0.attn.c_attn", {"model_type": "gpt2"})
    True
    """
    return _leaf(layer) in architectures.WITH_CONV1D.get(str(config.get("model_type")), ())


def by_names(shapes: Shapes, config: Mapping[str, Any]) -> Iterator[tuple[str, Located]]:
    """The weights among the tensors of files that updates can change, by the names of their layers."""
    attentions = {_owner(name) for name in shapes if name.endswith((".in_proj_weight", ".q_proj_weight"))}
    for tensor, shape in shapes.items():
        layer, _, leaf = tensor.rpartition(".")
        projection = leaf.removesuffix("_weight")
        if layer in attentions and leaf == "in_proj_weight":
            yield from ((f"{layer}.{part}", _projection(f"{layer}.{part}", shape[0] // 3)) for part in PROJECTIONS)
        elif layer in attentions and projection in PROJECTIONS:
            yield f"{layer}.{projection}", _projection(f"{layer}.{projection}", None)
        elif leaf == "weight" and layer:
            if _owner(layer) in attentions:
                yield layer, Located(tensor, kind=ProjectionUpdate)
            elif len(shape) == 2 and is_embedding(layer):
                yield layer, Located(tensor, EmbeddingUpdate.usual_layout, EmbeddingUpdate)
            elif len(shape) == 2:
                yield layer, Located(tensor, Layout(transposed=is_conv1d(layer, config)))
            elif 3 <= len(shape) <= 5:
                yield layer, Located(tensor, kind=ConvolutionUpdate)
        elif len(shape) == 3 and leaf in architectures.EXPERT_PARAMETERS:
            transposed = config.get("model_type") in architectures.WITH_TRANSPOSED_EXPERTS
            yield tensor, Located(tensor, Layout(transposed=transposed), ExpertsUpdate)


# --- by updates, and the shapes of the weights that they are for ----------------------------------------------------


def tensor_of(layer: str, update: LoRAUpdate, shapes: Shapes) -> str:
    """The one of the tensors of files that the weight of `layer`, which `update` changes, is in; empty when there is none."""
    owner, _, leaf = layer.rpartition(".")
    names = [layer if isinstance(update, ExpertsUpdate) else f"{layer}.weight"]
    if isinstance(update, ProjectionUpdate) and leaf in PROJECTIONS:
        names = [join(owner, "in_proj_weight"), f"{layer}_weight"]
    return next((name for name in names if name in shapes), "")


def by_updates(
    layers: Mapping[str, LoRAUpdate],
    tensors: Mapping[str, str],
    shapes: Shapes,
    fan_in_fan_out: bool,
    config: Mapping[str, Any],
) -> tuple[dict[str, Located], dict[str, str]]:
    """How the weights of `layers` are stored, and why an update does not fit its weight, by the names of the layers.

    tensors: that each layer's weight is in. fan_in_fan_out: what the adapter's configuration says of linear layers.
    """
    stored = {name: shapes[tensor] for name, tensor in tensors.items()}
    linear = {name: _by_shape(update, stored[name]) for name, update in layers.items() if _is_linear(update)}
    conv1d = architectures.WITH_CONV1D.get(str(config.get("model_type")), ())
    peers = {_leaf(name): transposed for name, transposed in linear.items() if transposed is not None}
    unknown = None if any(peers.values()) and not config.get("model_type") else False

    def is_transposed(name: str) -> bool | None:
        """Whether a linear layer's weight is stored as (in, out); None where nothing decides."""
        if (by_shape := linear[name]) is not None:
            return by_shape
        if conv1d or fan_in_fan_out:
            return _leaf(name) in conv1d or not conv1d
        return peers.get(_leaf(name), unknown)

    located, problems = {}, {}
    for name, update in layers.items():
        transposed = is_transposed(name) if name in linear else False
        if transposed is None:
            problems[name] = "its weight is square, and nothing tells whether it is stored as (out, in) or (in, out)"
        located[name] = _of_update(name, tensors[name], update, stored[name], bool(transposed), config.get("model_type"))
        if problem := _misfit(update, stored[name], located[name].layout):
            problems[name] = problem
    return located, problems


def _of_update(
    name: str, tensor: str, update: LoRAUpdate, stored: Shape, transposed: bool, model_type: object = None
) -> Located:
    if tensor.rpartition(".")[2] == "in_proj_weight":
        return _projection(name, len(update.B))
    layout = Layout(transposed=transposed or update.usual_layout.transposed)
    if isinstance(update, ExpertsUpdate):
        layout = Layout(transposed=_of_experts(update, stored, model_type))
    if isinstance(update, ConvolutionUpdate) and update.transposed:
        layout = Layout(deconvolution=update.groups)
    return Located(tensor, layout, type(update), getattr(update, "groups", 1))


def _of_experts(update: ExpertsUpdate, stored: Shape, model_type: object) -> bool:
    """Whether the matrices of experts are stored as (in, out): by their shape, and square ones by the kind of model."""
    E, k, d = update.canonical_shape
    return model_type in architectures.WITH_TRANSPOSED_EXPERTS if k == d else stored == (E, d, k)


def _is_linear(update: LoRAUpdate) -> bool:
    others = EmbeddingUpdate | ConvolutionUpdate | LegacyConvolutionUpdate | ProjectionUpdate | ExpertsUpdate
    return not isinstance(update, others) and update.A.dim() == 2


def _by_shape(update: LoRAUpdate, stored: Shape) -> bool | None:
    """Whether the weight of a linear layer is stored as (in, out); None for a square one."""
    k, d = update.canonical_shape
    return None if k == d else stored == (d, k)


def _misfit(update: LoRAUpdate, stored: Shape, layout: Layout) -> str | None:
    """Why `update` cannot be added to a weight of the shape `stored`, or None."""
    expected = layout.stored_shape(update.canonical_shape)
    if layout.rows is not None:
        fits = stored == (len(PROJECTIONS) * expected[0], *expected[1:])
        return None if fits else f"an update of {expected} for a third of {stored}"
    return None if stored == expected else f"an update of {expected} for a weight of {stored}"


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
