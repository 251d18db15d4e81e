"""The modules of a model by name, and the places of its tensors: shared ones under each of their names."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from .wrappers import child_of, name_of, unwrap, wrapped_child


def join(*parts: str) -> str:
    """A dotted name; empty parts (the root module's name) vanish.

    >>> join("", "encoder", "weight")
    'encoder.weight'
    """
    return ".".join(filter(None, parts))


class Tree(NamedTuple):
    """The modules of a model in the order of `named_modules`, a shared one under each of its names, without the wrappers
    around them. wrappers: those, by the names of what they wrap."""

    places: list[tuple[str, nn.Module]]
    wrappers: list[tuple[str, nn.Module]]


def walk(model: nn.Module) -> Tree:
    """The modules of `model`, by the names that they have in the plain model."""
    found = Tree([], [])

    def visit(name: str, module: nn.Module) -> None:
        while (wrapped := wrapped_child(module)) is not None:
            found.wrappers.append((name, module))
            module = module.get_submodule(wrapped)
        found.places.append((name, module))
        prefix = f"{name}." if name else ""
        for key, child in module._modules.items():
            if child is not None:
                visit(prefix + name_of(key, child), child)

    visit("", model)
    return found


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `module` itself, by their names in it."""
    return {leaf: parameter for leaf, parameter in module._parameters.items() if parameter is not None}


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of `module` itself that its state dict has, by their names in it."""
    transient = module._non_persistent_buffers_set
    return {leaf: buffer for leaf, buffer in module._buffers.items() if buffer is not None and leaf not in transient}


class Slot(NamedTuple):
    """The place of a tensor: the module that holds it, and its name there."""

    module: nn.Module
    leaf: str

    @property
    def _held(self) -> dict[str, Any]:
        """The module's parameters or its buffers, whichever the tensor is among."""
        return self.module._parameters if self.leaf in self.module._parameters else self.module._buffers

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer in this place."""
        found: Tensor = self._held[self.leaf]
        return found

    def put(self, tensor: Tensor) -> Tensor:
        """Put `tensor` in this place; the one that was there is returned."""
        before = self.tensor
        self._held[self.leaf] = tensor
        return before


def slot_of(model: nn.Module, name: str) -> Slot:
    """The place of the tensor `name`."""
    *path, leaf = name.split(".")
    module = unwrap(model)
    for part in path:
        module = unwrap(child_of(module, part))
    return Slot(module, leaf)
