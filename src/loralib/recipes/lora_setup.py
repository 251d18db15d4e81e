"""LoRA on a model as the options of a run ask: which layers, of what rank, and from which factors it starts.

The paper's MRPC, RTE and STS-B start from the factors that MNLI's run learned. Only factors are taken over: a head was trained
for the other task's labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from ..surgery.bound import Bound
from ..surgery.inject import inject as inject_lora
from ..surgery.load_factors import load_factors
from ..surgery.roles import role_targets
from ..surgery.trainable import mark_only_lora_as_trainable
from . import run_folder
from .options import TrainOptions


def inject(model: PreTrainedModel, options: TrainOptions, head: Sequence[str] = ()) -> Bound:
    """LoRA as the options ask, and factors to start from; all is frozen but LoRA and the `head`. The adapted layers' names."""
    lora = options.lora
    targets = {} if lora.target_modules else role_targets(model, options.roles)
    config = replace(lora, modules_to_save=[*head, *lora.modules_to_save], **targets)
    adapted = inject_lora(model, config)
    mark_only_lora_as_trainable(model)
    if options.init_adapter:
        adapter = Path(options.init_adapter, run_folder.ADAPTER)
        load_factors(model, adapter if adapter.is_dir() else options.init_adapter)
    return adapted
