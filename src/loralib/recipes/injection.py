"""LoRA on a model as the options of a run ask: which layers, of what rank, and from which factors it starts."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from ..config import LoRAConfig
from ..surgery.inject import inject as inject_lora
from ..surgery.roles import role_targets
from ..surgery.trainable import mark_only_lora_as_trainable
from . import start
from .options import TrainOptions


def inject(model: PreTrainedModel, options: TrainOptions, head: Sequence[str] = ()) -> None:
    """Inject, freeze the rest but for the modules of the `head`, and load the factors to start from.

    Raises `ConfigError` or `TargetError` for layers that are not there, `FormatError` or `AttachError` for factors that are no
    start.
    """
    targets = {"target_modules": options.targets} if options.targets else role_targets(model, options.roles)
    config = LoRAConfig(
        r=options.r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        modules_to_save=head,
        use_rslora=options.use_rslora,
        **targets,
    )
    inject_lora(model, config)
    mark_only_lora_as_trainable(model)
    if options.init_adapter:
        start.load_factors(model, options.init_adapter)
