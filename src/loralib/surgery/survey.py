"""Reading a model: which layers it has, which of them are adapted, and which can be."""

from torch import nn

from .. import layers
from ..adapters.updates import LoRAUpdate
from ..errors import LayerError
from ..layers import AdaptedLayer
from .module_tree import join
from .saved_modules import records


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers of `model` that carry an update, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLayer) and m.has_update}


def require_adapted(model: nn.Module) -> dict[str, AdaptedLayer]:
    """`adapted_layers`; `LayerError` when there are none, and nothing trained beside any either."""
    found = adapted_layers(model)
    if not found and not any(True for _ in records(model)):
        raise LayerError(
            f"{type(model).__name__} has no layer with a LoRA update; inject a LoRAConfig or attach an adapter first."
        )
    return found


def sites(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of `model` by name, and with them the projections of its `nn.MultiheadAttention`s, which become modules
    when they are adapted."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        found[name] = module
        if isinstance(module, nn.MultiheadAttention) and layers.attention_problem(module) is None:
            missing = (p for p in layers.PROJECTIONS if p not in module._modules)
            found |= {join(name, projection): layers.Projection(module, projection) for projection in missing}
    return found


def owners(model: nn.Module) -> dict[int, nn.Module]:
    """The modules of torch that read weights of their layers without calling them, by the ids of those layers."""
    readers = (m for m in model.modules() if isinstance(m, nn.MultiheadAttention | nn.TransformerEncoderLayer))
    return {id(child): module for module in readers for child in module.children()}


def layer_problem(
    owner: nn.Module | None, layer: nn.Module, lora_dropout: float, update_class: type[LoRAUpdate] | None = None
) -> str | None:
    """Why `layer`, whose owner is that of `owners`, cannot be given an update, or None."""
    if isinstance(owner, nn.MultiheadAttention) and (problem := layers.attention_problem(owner)):
        return problem
    return layers.adoption_problem(layer, lora_dropout, update_class)
