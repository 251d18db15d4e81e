"""The base of a run in 4 or 8 bits: its linear layers are quantized once the model is loaded.

Those that "all-linear" would adapt: not the output embedding, and not a head that is trained in full.
"""

import logging
from importlib.util import find_spec

from torch import nn
from transformers import PreTrainedModel

from .. import quant
from ..choices import QuantizedBase
from ..config import LoRAConfig
from ..errors import RunError
from ..surgery.survey import Survey
from ..surgery.targets import find_targets


def quantize(model: PreTrainedModel, kind: QuantizedBase | None) -> int:
    """Quantize the linear layers of `model` in place; how many there are. None leaves it as it is.

    Raises `RunError` without the package that does it, and where it can quantize none.
    """
    if kind is None:
        return 0
    if find_spec(quant.PACKAGE) is None:
        raise RunError(f"quantize={kind!r} needs the package {quant.PACKAGE}; run: pip install {quant.PACKAGE}")
    logging.getLogger(quant.PACKAGE).setLevel(logging.ERROR)  # else it says at every product what it casts
    read = Survey(model)
    sites = {name: read.sites[name] for name in find_targets(read, LoRAConfig()).names}
    chosen = {name: layer for name, layer in sites.items() if type(layer) is nn.Linear and quant.fits(layer, kind)}
    if not chosen:
        raise RunError(
            f"quantize={kind!r}: {type(model).__name__} has no linear layer that can be quantized so; in 4 bits their inputs "
            "are multiples of 64 and their outputs of 32. Leave it out, or choose int8."
        )
    for name, layer in chosen.items():
        model.set_submodule(name, quant.quantized(layer, kind))
    return len(chosen)


def said(model: nn.Module, kind: QuantizedBase) -> str:
    """How many linear layers of the base are quantized, in words."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    done = sum(quant.of(layer, layer._parameters.get("weight")) is not None for layer in linear)
    return f"{done} linear layers of the base are in {kind}, {len(linear) - done} as they were"
