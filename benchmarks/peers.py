"""Who is measured: a frozen layer, our update on it, PEFT's, and loralib 0.1.2's layers with the same weight.

0.1.2, whose wheel `make install` fetches, and earlier versions of ours share our import name, so they are imported under
another one. What makes a contender of ours is given the version to use, `lora`.
"""

import atexit
import copy
import functools
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

if find_spec("peft") is None:
    sys.path += [str(wheel) for place in sys.path for wheel in Path(place).glob("peft-*.whl")]
try:
    import peft
except ImportError:  # on some GPUs there is none, and `benchmarks gpu` does without
    peft = None

FROZEN, LEGACY, PEFT = "frozen", "loralib 0.1.2", "PEFT"

WHEEL_0_1 = Path(sys.prefix) / "peers" / "loralib-0.1.2-py3-none-any.whl"


@functools.cache
def imported(place: Path, name: str) -> ModuleType:
    """The loralib of a wheel, or of the folder that holds it, as a package called `name`. A wheel is unpacked until the end."""
    folder = place
    if place.is_file():
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder)
        shutil.unpack_archive(place, folder, "zip")
    path = folder / "loralib" / "__init__.py"
    spec = spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"{place} is neither a wheel of loralib nor a folder that holds loralib/.")
    package = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def loralib_0_1() -> ModuleType:
    """loralib 0.1.2."""
    if not WHEEL_0_1.is_file():
        raise FileNotFoundError(f"{WHEEL_0_1} is missing; `make install` fetches it.")
    return imported(WHEEL_0_1, "loralib_0_1")


def loralib_before(place: Path) -> ModuleType:
    """An earlier version of this library."""
    package = imported(place, "loralib_before")
    import_module(".ops", package.__name__)  # an attribute that older versions do not load by themselves
    return package


def draw_factors(model: Any) -> Any:
    """Give all that is trained small random values, so that no library can profit from a zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.is_meta:
                parameter.normal_(0, 0.02)
    return model


# --- on whole models, in place ---------------------------------------------------------------------------------------


def ours_on(lora: ModuleType, model: nn.Module, dtype: torch.dtype | None = None, **config: Any) -> Any:
    """Our updates. dtype: of the factors; None means at least float32."""
    lora.inject(model, lora.LoRAConfig(**config), dtype)
    lora.mark_only_lora_as_trainable(model)
    return draw_factors(model)


def peft_on(model: Any, upcast: bool = True, **config: Any) -> Any:
    """PEFT's updates, without its wrapper. upcast: factors of at least float32, as PEFT makes them by default."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config), autocast_adapter_dtype=upcast)
    return draw_factors(wrapped.base_model.model)


def legacy_on(model: nn.Module, made: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    """0.1.2's layers, by name, in their places, with the weights that are there. dtype: of the factors, or the weight's."""
    for name, layer in made.items():
        old: Any = model.get_submodule(name)
        getattr(layer, "conv", layer).load_state_dict(old.state_dict(), strict=False)
        model.set_submodule(name, layer.to(old.weight.device, old.weight.dtype))
        for factor in (layer.lora_A, layer.lora_B):
            factor.data = factor.data.to(dtype)
    loralib_0_1().mark_only_lora_as_trainable(model)
    return draw_factors(model)


# --- on a layer, copied -----------------------------------------------------------------------------------------------


def holder(layer: nn.Module) -> nn.Sequential:
    """A copy of `layer` as the only layer, "0", of a model, frozen."""
    return nn.Sequential(copy.deepcopy(layer)).requires_grad_(False)


def ours(lora: ModuleType, layer: nn.Module, dtype: torch.dtype | None = None, **config: Any) -> Any:
    """The layer with our update."""
    return ours_on(lora, holder(layer), dtype, target_modules=["0"], **config)


def peft_layer(layer: nn.Module, upcast: bool = True, **config: Any) -> Any:
    """The layer with PEFT's update."""
    return peft_on(holder(layer), upcast, target_modules=["0"], **config)


def legacy(kind: str, layer: nn.Module, *sizes: int, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """The layer as one of 0.1.2's class `kind`. dtype: of the factors; None means the weight's."""
    made: nn.Module = getattr(loralib_0_1(), kind)(*sizes, **options)
    return legacy_on(holder(layer), {"0": made}, dtype)


def step(model: nn.Module, *inputs: Tensor, autocast: torch.dtype | None = None) -> Callable[[], object]:
    """Forward and backward once: the gradients of all inputs and parameters that want one (the output, where none does)."""
    wanted = [tensor for tensor in (*inputs, *model.parameters()) if tensor.requires_grad]

    def forward() -> Tensor:
        with torch.autocast(inputs[0].device.type, autocast) if autocast else nullcontext():
            y: Tensor = model(*inputs)
        return y

    @functools.cache
    def dy() -> Tensor:
        return torch.randn_like(forward().detach())

    def forward_and_backward() -> object:
        return torch.autograd.grad(forward(), wanted, dy()) if wanted else forward()

    return forward_and_backward
