"""The shapes of the models that the LoRA paper adapts, as data, and models without weights built from them.

A model on the meta device has names and shapes and takes no memory, which is all that counting needs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from ..architectures import ENCODERS, PUBLISHED, short_name
from ..errors import RunError
from . import model_loader, model_sources
from .nlu import encoders
from .nlu.encoders import Headed


@dataclass(frozen=True)
class Shape(Headed):
    """A model on the meta device and the names of the parts of its head, which are trained with LoRA."""

    @property
    def is_causal(self) -> bool:
        """Whether it generates text, and has no head to train."""
        return not self.head


def read_config(name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model: known here by the last part of its name, or from wherever `model_sources.locate` finds it.

    trust_remote_code: whether to run the Python code that comes with the model, where it needs some.
    """
    known = short_name(name)
    try:
        if known in PUBLISHED:
            kind, values = PUBLISHED[known]
            config: PretrainedConfig = AutoConfig.for_model(kind, **values)
        else:
            source = model_sources.locate(name)
            trust: dict[str, Any] = {"trust_remote_code": bool(trust_remote_code)}
            config = AutoConfig.from_pretrained(source.path, **trust, **model_loader.reading(source))
    except (OSError, ValueError, KeyError) as error:
        model_loader.refuse_code(name, error)
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"the shape of model {name!r} cannot be had; give a local folder, a name on the Hugging Face hub and a network, or "
            f"one of {', '.join(PUBLISHED)}. ({reason})"
        ) from None
    config.name_or_path = name
    return config


def build(
    name: str,
    labels: list[str] | None,
    trust_remote_code: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    causal: bool | None = None,
) -> Shape:
    """The model `name` on the meta device: an encoder with a head for `labels` (None: regression), or a language model.

    trust_remote_code: as in `read_config`. dtype: of its weights. causal: whether it is a language model; None: by its type.
    """
    config = read_config(name, trust_remote_code)
    causal = config.model_type not in ENCODERS if causal is None else causal
    if not causal:
        for key, value in encoders.outputs(labels).items():
            setattr(config, key, value)
    with torch.device("meta"):
        kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        try:
            model = kind.from_config(config, trust_remote_code=bool(trust_remote_code), dtype=dtype)
        except ValueError as error:
            model_loader.refuse_code(name, error)
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"model {name!r} cannot be built from its config ({reason}); give another one.") from None
    return Shape(model, () if causal else encoders.head_of(model))
