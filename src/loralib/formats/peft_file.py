"""One file with PEFT's names and no `adapter_config.json` next to it: a state dict of PEFT's model, or a lone file.

What only the configuration says, lora_alpha first, has to be given; the rank is that of the factors.
"""

from ..adapters.adapter import Adapter
from ..config import LoRAConfig
from ..errors import FormatError
from . import foreign, peft, peft_names
from .opened import Opened
from .peft_attention import apart

EXPECTED = "a file of PEFT's without a configuration has tensors named <layer>.lora_A.weight and <layer>.lora_B.weight"


def detect(opened: Opened) -> bool:
    """Whether it is a file of tensors with such names."""
    return any(map(peft_names.is_factor, opened.known_names()))


def read(opened: Opened, config: LoRAConfig | None = None) -> Adapter:
    """The adapter in the file. config: its `lora_alpha` (and `alpha_pattern`, `use_rslora`), which no tensor says.

    Raises `FormatError` without it, and when the file is damaged."""
    path = opened.path
    if what := foreign.by_names(opened.known_names()):
        raise FormatError(f"{path} is {what}.")
    factors, tensors, rows = peft_names.sort(str(path), opened.all_tensors())
    if config is None:
        raise FormatError(
            f"{path} has PEFT's names, and {peft.CONFIG}, which says lora_alpha, is not next to it",
            "put it there, or give what the training had: load(path, config=LoRAConfig(lora_alpha=16))",
            option="put it there, or give what the training had: --lora-alpha N",
        )
    if rows:
        raise FormatError(f"{path} holds rows of tokens, whose numbers only {peft.CONFIG} says; put it next to the file.")
    layers = apart({name: peft.update_of(str(path), name, parts, config) for name, parts in factors.items()})
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in tensors))
    settings = LoRAConfig(modules_to_save=modules, lora_dropout=config.lora_dropout)
    return Adapter(settings, layers, tensors, source=f"file of PEFT {path.name}")
