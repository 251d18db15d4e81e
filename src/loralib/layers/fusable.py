"""Attention of diffusers, which can fuse its projections: `fuse_qkv_projections` copies their weights into one layer, and calls
that one from then on. Updates would be left behind, so it is refused while one of the projections has an update."""

from functools import cache
from typing import Any

from torch import nn

from ..errors import LayerError
from .adopted import Adopted
from .base import AdaptedLayer
from .class_factory import lora_class

_PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
_PROCESSED = "diffusers.models.attention_processor"  # its attention leaves it to a processor which layers are called


class FusableAttentionLoRA(Adopted):
    """An attention of diffusers with projections that have updates."""

    def fuse_projections(self, *args: Any, **kwargs: Any) -> None:
        """Refuse while a projection has an update."""
        if getattr(self, "_supports_qkv_fusion", True):
            self._check_plain("fused", "merge(model, keep=False) or eject first")
        super().fuse_projections(*args, **kwargs)  # type: ignore[misc]

    def unfuse_projections(self) -> None:
        """Refuse while the fused projection, which would be deleted, has an update."""
        if self.fused_projections:
            self._check_plain("unfused", "eject first")
        super().unfuse_projections()  # type: ignore[misc]

    def _check_plain(self, verb: str, remedy: str) -> None:
        adapted = [name for name, child in self._modules.items() if isinstance(child, AdaptedLayer) and child.has_update]
        if adapted:
            raise LayerError(
                f"The projections {', '.join(adapted)} of {self.base_class.__name__} have LoRA updates, which would be lost if "
                f"they were {verb}; {remedy}."
            )


def is_fusable(module: nn.Module) -> bool:
    """Whether `module` is an attention of diffusers that can fuse its projections."""
    kind: Any = type(module)
    return _can_fuse(kind)


@cache
def _can_fuse(cls: Any) -> bool:
    return "fuse_projections" in dir(cls) and any(base.__module__.startswith("diffusers.") for base in cls.__mro__)


def fused_away(owner: nn.Module) -> dict[int, str]:
    """Why projections of `owner` are not called at present, by the ids of those that are not."""
    if not owner.fused_projections:
        return {}
    if any(c.__module__ == _PROCESSED for c in type(owner).__mro__) and not type(owner.processor).__name__.startswith("Fused"):
        return {}  # unfused again
    found = {name: whole for whole, names in _PARTS.items() if whole in owner._modules for name in names}
    reason = "its attention calls the fused projection {} in its place; call unfuse_qkv_projections() first"
    return {id(child): reason.format(found[name]) for name, child in owner._modules.items() if name in found}


def guard_fusion(module: nn.Module) -> None:
    """Let `module`, which has a projection with an update, refuse to fuse."""
    if not isinstance(module, FusableAttentionLoRA):
        module.__class__ = lora_class(FusableAttentionLoRA, type(module))


def unguard_fusion(module: nn.Module) -> None:
    """Make `module` what it was, once none of its projections is adapted."""
    if isinstance(module, FusableAttentionLoRA) and not any(isinstance(m, AdaptedLayer) for m in module.children()):
        module.give_back()
