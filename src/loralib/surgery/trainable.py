"""Which tensors belong to the adapter: one predicate decides what is trained, saved and loaded.

A tensor of a model belongs to its adaptation when
  - a dotted part of its name starts with `lora_` (the factors, those of layers of one's own included), or
  - it is a bias that the mode `bias` names, or
  - `inject` or `attach` recorded it as trained in full beside the factors (a new head, say).

The record sits on the module that was injected, with the originals of the tensors it names, so that `eject` and `disabled`
can put them back.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from ..choices import Bias
from ..config import check_bias
from ..errors import ConfigError, LayerError
from ..layers import AdaptedLayer, LoRALayer, MultiheadAttentionLoRA
from ..patterns import within
from .module_tree import join, named_tensors, unwrap
from .saved_modules import check_enabled, record, records


def bias_names(model: nn.Module, bias: Bias, about_to_be_adapted: Iterable[str] = ()) -> set[str]:
    """The parameters that the mode names: those called `bias` of the layers that carry an update, of all, or of none."""
    if bias == "none":
        return set()
    named = {name for name, _ in model.named_parameters(remove_duplicate=False) if is_bias(name)}
    if bias == "all":
        return named
    adapted = [name for name, m in model.named_modules(remove_duplicate=False) if _carries_update(m)]
    return named & {join(name, "bias") for name in (*adapted, *about_to_be_adapted)}


def _carries_update(module: nn.Module) -> bool:
    return module.has_update if isinstance(module, AdaptedLayer) else isinstance(module, LoRALayer) and bool(module.r)


def is_bias(name: str) -> bool:
    """Whether a tensor of this name is one of those that the mode `bias` chooses among: it is *named* bias.

    >>> is_bias("query.bias"), is_bias("bias_table.weight")
    (True, False)
    """
    return name.rpartition(".")[2] == "bias"


def is_factor(name: str) -> bool:
    """Whether a tensor of this name is a LoRA factor: a dotted part of it starts with `lora_`.

    >>> is_factor("encoder.query.lora_A"), is_factor("explora_net.weight")
    (True, False)
    """
    return any(part.startswith("lora_") for part in name.split("."))


def trained_names(model: nn.Module, bias: Bias | None = None) -> set[str]:
    """The names of all tensors that belong to the adaptation of `model`. `bias` None means as recorded, else "none"."""
    names = {name for name in named_tensors(model) if is_factor(name)}
    if bias is not None:
        names |= bias_names(model, check_bias(bias))
    for prefix, module, kept in records(model):
        whole = [name for name in kept.originals if name not in kept.rows]
        names |= {join(prefix, name) for name in whole if not is_bias(name) or within(name, kept.modules)}
        if bias is None:
            names |= {join(prefix, name) for name in bias_names(module, kept.bias)}
    return names


def _check_called(model: nn.Module) -> None:
    """`LayerError` when a layer with an update was put by hand where torch reads its weight without calling it."""
    for name, module in model.named_modules():
        by_hand = isinstance(module, nn.MultiheadAttention) and not isinstance(module, MultiheadAttentionLoRA)
        if by_hand and any(_carries_update(child) for child in module.children()):
            where = join(name, "out_proj")
            raise LayerError(
                f"{where!r} is a LoRA layer whose weight nn.MultiheadAttention reads without calling it, so its update would "
                "have no effect: leave the plain layer there and inject a LoRAConfig that targets it. Nothing was changed."
            )


def mark_only_lora_as_trainable(model: nn.Module, bias: Bias | None = None) -> None:
    """Set `requires_grad` of every parameter: True for the factors, for the biases that `bias` names and for what the
    configuration's `modules_to_save` named; False for all else.

    bias: "none", "lora_only" (those of layers with an update) or "all" (every parameter *named* bias); None means what the
    model was injected with, else "none". A bias named here is also what `extract` and `lora_state_dict` save; one that the
    model was not injected with is trained in place, so `eject` leaves it as trained.
    Raises `ConfigError` when nothing would be trained, and `LayerError` inside a `disabled` block or when a layer would be
    trained that is never called, with no flag changed.

    >>> import loralib as lora
    >>> model = nn.Sequential(lora.Linear(4, 4, r=2), nn.Linear(4, 2))
    >>> lora.mark_only_lora_as_trainable(model)
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['0.lora_A', '0.lora_B']
    """
    check_enabled(model, "marked")
    _check_called(model)
    names = trained_names(model, bias)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not names & parameters.keys():
        raise ConfigError(
            f"{type(model).__name__} has no LoRA parameter, so nothing would be trained: "
            "inject a LoRAConfig, or build layers with r > 0, first. Nothing was changed."
        )
    trained = {id(parameters[name]) for name in names & parameters.keys()}
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in trained)
    if bias is not None:
        for _, _, kept in records(model):
            kept.bias = "none"
        record(unwrap(model)).bias = bias


def lora_state_dict(model: nn.Module, bias: Bias | None = None) -> dict[str, Tensor]:
    """The part of `model.state_dict()` that belongs to the adaptation: the factors, the biases that `bias` names (as in
    `mark_only_lora_as_trainable`), and what `modules_to_save` named. The tensors share memory with the model's.
    Raises `LayerError` inside a `disabled` block.

    >>> import loralib as lora
    >>> model = nn.Sequential(lora.Linear(4, 4, r=2), nn.Linear(4, 2))
    >>> list(lora.lora_state_dict(model, bias="lora_only"))
    ['0.bias', '0.lora_A', '0.lora_B']
    """
    check_enabled(model, "saved")
    names = trained_names(model, bias)
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}
