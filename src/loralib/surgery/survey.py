"""Reading a model once: its modules and tensors by name, which layers are adapted, and which can be."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from torch import Tensor, nn

from .. import layers
from ..adapters.updates import LoRAUpdate
from ..arguments import check_model
from ..errors import LayerError
from ..layers import AdaptedLayer
from .module_tree import Slot, join, own_parameters, persistent_buffers, slot_of, walk
from .saved_modules import ExtraTensors, record_of, swap_problem
from .surroundings import Reasons, parts_of_adapters, read_directly, routers
from .wrappers import unwrap


class Survey:
    """One reading of `model`, true until the model is changed. Everything but the list of modules is read when it is asked
    for, and once.

    model: the module inside all wrappers. places: every module with each of its names. modules: every module under the first of
    its names. wrappers: the modules that only wrap another one, with its name; they are in neither, and in no name.
    """

    def __init__(self, model: nn.Module):
        check_model(model)
        self.model = unwrap(model)
        self.places, self.wrappers = walk(model)
        first = {id(module): name for name, module in reversed(self.places)}
        self.modules = {name: module for name, module in self.places if first[id(module)] == name}

    # --- layers -----------------------------------------------------------------------------------------------------

    @cached_property
    def adapted(self) -> dict[str, AdaptedLayer]:
        """The layers that carry an update, by name."""
        return {name: m for name, m in self.modules.items() if isinstance(m, AdaptedLayer) and m.has_update}

    @cached_property
    def carriers(self) -> dict[str, AdaptedLayer]:
        """The layers that hold factors, by name: all `adapted` ones, and those whose rank was set to 0 by hand."""
        found = {name: m for name, m in self.modules.items() if isinstance(m, AdaptedLayer)}
        return {name: layer for name, layer in found.items() if layer.has_update or layer.adapter_parameters()}

    @cached_property
    def sites(self) -> dict[str, nn.Module]:
        """All modules by name, and with them the projections of each `nn.MultiheadAttention` and the 3-D Parameters of modules,
        which experts have: they become modules when they are adapted."""
        found: dict[str, nn.Module] = {}
        for name, module in self.modules.items():
            found[name] = module
            if isinstance(module, nn.MultiheadAttention) and layers.attention_problem(module) is None:
                missing = (p for p in layers.PROJECTIONS if p not in module._modules)
                found |= {join(name, projection): layers.Projection(module, projection) for projection in missing}
            if layers.handler_of(type(module)) is None:
                own = (weight for weight in layers.expert_weights(module) if join(name, weight) not in self.modules)
                found |= {join(name, weight): layers.ExpertWeight(module, weight) for weight in own}
        return found

    @cached_property
    def owners(self) -> dict[int, nn.Module]:
        """The modules that can read weights of their layers without calling them, by the ids of those layers: two of torch, and
        attention of diffusers, when it fuses its projections."""
        readers = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
        found = [module for module in self.modules.values() if isinstance(module, readers) or layers.is_fusable(module)]
        return {id(child): module for module in found for child in module.children()}

    @cached_property
    def unreached(self) -> Reasons:
        """Why an update of some layers would have no effect where they are, or belongs to another adapter, by their ids."""
        found = parts_of_adapters(self.modules.values()) | routers(self.modules.values())
        if read := read_directly(self.modules.values()):  # a layer that another module holds as well may be called there
            holders = Counter(id(child) for module in self.modules.values() for child in module._modules.values())
            found |= {layer: reason for layer, reason in read.items() if holders[layer] == 1}
        for layer, owner in self.owners.items():
            if isinstance(owner, nn.MultiheadAttention) and (problem := layers.attention_problem(owner)):
                found[layer] = problem
            if layers.is_fusable(owner):
                found |= layers.fused_away(owner)
        return found

    def layer_problem(self, layer: nn.Module, lora_dropout: float, update_class: type[LoRAUpdate] | None = None) -> str | None:
        """Why `layer`, one of `sites`, cannot be given an update, or None."""
        return self.unreached.get(id(layer)) or layers.adoption_problem(layer, lora_dropout, update_class)

    # --- tensors ----------------------------------------------------------------------------------------------------

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name, tied ones under each of their names."""
        return {join(name, leaf): parameter for name, m in self.places for leaf, parameter in own_parameters(m).items()}

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """The places of all parameters and persistent buffers, under each of their names."""
        parameters = [(name, m, leaf) for name, m in self.places for leaf in own_parameters(m)]
        buffers = [(name, m, leaf) for name, m in self.places for leaf in persistent_buffers(m)]
        return {join(name, leaf): Slot(module, leaf) for name, module, leaf in parameters + buffers}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All parameters and persistent buffers by name, tied ones under each of their names."""
        return {name: slot.tensor for name, slot in self.slots.items()}

    def tied(self, name: str) -> list[str]:
        """All names of the tensor `name`, `name` first."""
        same = self.tensors[name]
        return [name, *(other for other, tensor in self.tensors.items() if tensor is same and other != name)]

    def tie_problem(self, names: Iterable[str]) -> str | None:
        """Why `names` cannot be trained apart from the rest of the model, or None: one is tied to a tensor outside."""
        if not (chosen := set(names)):
            return None
        inside = {id(self.tensors[name]): name for name in chosen}
        places = {self.slots[name] for name in chosen}
        for name, tensor in self.tensors.items():
            if name not in chosen and id(tensor) in inside and self.slots[name] not in places:
                return f"{inside[id(tensor)]} is tied to {name}; name the modules of both in modules_to_save, or untie them"
        return None

    # --- what is recorded as trained in full ------------------------------------------------------------------------

    @cached_property
    def records(self) -> list[tuple[str, nn.Module, ExtraTensors]]:
        """The records of tensors trained in full, with the name and the module that each belongs to."""
        return [(name, module, kept) for name, module in self.modules.items() if (kept := record_of(module)) is not None]

    @cached_property
    def replaced(self) -> set[Slot]:
        """The places of tensors whose originals are recorded."""
        return {slot_of(module, name) for _, module, kept in self.records for name in kept.originals}

    @cached_property
    def replaced_names(self) -> list[str]:
        """The names of those tensors."""
        return [join(prefix, name) for prefix, _, kept in self.records for name in kept.originals]

    # --- refusals ---------------------------------------------------------------------------------------------------

    def require_adapted(self) -> dict[str, AdaptedLayer]:
        """`adapted`; `LayerError` when there are none, and nothing is trained in full either."""
        if not self.adapted and not self.records:
            raise LayerError(
                f"{type(self.model).__name__} has no layer with a LoRA update; inject a LoRAConfig or attach an adapter first."
            )
        return self.adapted

    def check_originals(self, verb: str) -> None:
        """`LayerError` when the originals of what is trained in full cannot be put back."""
        for _, module, kept in self.records:
            if not kept.swapped and (problem := swap_problem(kept, module)):
                raise LayerError(f"{type(self.model).__name__} cannot be {verb}: {problem}. Nothing was changed.")

    def check_enabled(self, verb: str) -> None:
        """`LayerError` inside a `disabled` block, where originals are in the places of what was trained."""
        off = any(isinstance(module, AdaptedLayer) and module.disabled for module in self.modules.values())
        if off or any(kept.swapped for _, _, kept in self.records):
            raise LayerError(
                f"{type(self.model).__name__} cannot be {verb} inside a `disabled` block; do it outside. Nothing was changed."
            )
