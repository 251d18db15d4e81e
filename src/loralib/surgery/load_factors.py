"""`load_factors`: a model starts from the LoRA factors of an adapter, without the tensors trained with them (a head)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from .. import formats
from ..adapters.updates import LoRAUpdate
from ..errors import AttachError, FormatError
from ..layers import AdaptedLayer
from ..storage.pickled import read_state_dict
from .survey import Survey


def load_factors(model: nn.Module, path: str | Path) -> None:
    """Load the factors of the adapter at `path` into the layers that `model` was injected with, all or none.

    A file of loralib 0.1 does not say its lora_alpha: that of the model is taken. Raises `FormatError` when there is no adapter
    at `path`, and `AttachError`, listing everything, when its layers, shapes or scaling are not the model's; the model is then
    unchanged.
    """
    layers = Survey(model).adapted
    found = _read_legacy(Path(path), layers) if Path(path).is_file() else formats.load(path).layers
    updates = {name: layers[name].own_form(update) if name in layers else update for name, update in found.items()}
    problems = [f"{name}: in the adapter, not in this run" for name in updates if name not in layers]
    problems += [f"{name}: in this run, not in the adapter" for name in layers if name not in updates]
    for name in layers.keys() & updates.keys():
        if problem := _problem(layers[name], updates[name]):
            problems.append(f"{name}: {problem}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise AttachError(
            f"The factors of {path} are not a start for this run: {'; '.join(problems[:4])}{more}. "
            "Give the layers, the rank and the lora_alpha that they were trained with."
        )
    for name, layer in layers.items():
        layer.load_update(updates[name])


def _read_legacy(path: Path, layers: Mapping[str, AdaptedLayer]) -> dict[str, LoRAUpdate]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_state_dict(path).items():
        name, _, leaf = key.rpartition(".")
        if leaf in ("lora_A", "lora_B"):
            pairs.setdefault(name, {})[leaf] = tensor
    half = next((name for name, pair in pairs.items() if len(pair) < 2), None)
    if half or not pairs:
        raise FormatError(
            f"{path} holds {f'half of the factors of {half!r}' if half else 'no LoRA factors'}; give another file."
        )
    updates = {}
    for name, pair in pairs.items():
        A, B = pair["lora_A"], pair["lora_B"]
        updates[name] = replace(layers[name].update, A=A, B=B) if name in layers else LoRAUpdate(A, B, lora_alpha=1)
    return updates


def _problem(layer: AdaptedLayer, update: LoRAUpdate) -> str | None:
    if misfit := layer.misfit(layer, update):
        return misfit
    own = layer.update
    if own.scaling != update.scaling:
        return f"scaling {update.scaling:g} in the adapter (lora_alpha={update.lora_alpha:g}), {own.scaling:g} in this run"
    return None
