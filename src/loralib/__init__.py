"""LoRA for any PyTorch model: the drop-in successor of loralib 0.1.

    import loralib as lora

Names load where they are first used, so that the command line can answer before torch has been read.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "1.0.0.dev0"
name = "lora"

if TYPE_CHECKING:
    from . import analysis, formats, layers, ops, utils
    from .adapters.adapter import Adapter
    from .adapters.combine import combine
    from .adapters.convolution_updates import ConvolutionUpdate, LegacyConvolutionUpdate
    from .adapters.embedding_update import EmbeddingUpdate
    from .adapters.expert_forms import split_experts, stack_experts
    from .adapters.experts_update import ExpertsUpdate
    from .adapters.fused_update import FusedUpdate
    from .adapters.token_rows import TokenRows
    from .adapters.updates import LoRAUpdate, ProjectionUpdate
    from .analysis import (
        Intruder,
        SubspaceSimilarity,
        intruder_dimensions,
        reduce_intruder_dimensions,
        subspace_similarity,
    )
    from .analysis.amplification import Amplification, amplification
    from .checkpoints.difference import difference
    from .checkpoints.merge import MergeReport, merge_checkpoint
    from .config import LoRAConfig
    from .errors import (
        AlgebraError,
        ArgumentError,
        AttachError,
        ConfigError,
        DataError,
        FormatError,
        LayerError,
        LoRAError,
        RunError,
        TargetError,
    )
    from .formats import detect, load, save
    from .layers import (
        AdaptedLayer,
        Conv1d,
        Conv2d,
        Conv3d,
        ConvLoRA,
        Embedding,
        Linear,
        LoRALayer,
        MergedLinear,
        MergedStateDictWarning,
        register_layer,
    )
    from .star_0_1 import Dict, F, List, Optional, math, nn, torch
    from .surgery.attach import attach
    from .surgery.check_trained import check_trained
    from .surgery.eject import eject
    from .surgery.extract import extract
    from .surgery.inject import inject
    from .surgery.load_legacy import LegacyReport, load_legacy
    from .surgery.merge import disabled, merge, merged, merged_state_dict, unmerge
    from .surgery.suggest import Suggestion, suggest
    from .surgery.trainable import lora_state_dict, mark_only_lora_as_trainable

_SUBMODULES = ("analysis", "formats", "layers", "ops", "utils")
_HOMES = {
    "adapters.adapter": ("Adapter",),
    "adapters.token_rows": ("TokenRows",),
    "analysis": (
        "Intruder",
        "SubspaceSimilarity",
        "intruder_dimensions",
        "reduce_intruder_dimensions",
        "subspace_similarity",
    ),
    "analysis.amplification": ("Amplification", "amplification"),
    "checkpoints.difference": ("difference",),
    "checkpoints.merge": ("MergeReport", "merge_checkpoint"),
    "adapters.combine": ("combine",),
    "config": ("LoRAConfig",),
    "errors": (
        "AlgebraError",
        "ArgumentError",
        "AttachError",
        "ConfigError",
        "DataError",
        "FormatError",
        "LayerError",
        "LoRAError",
        "RunError",
        "TargetError",
    ),
    "surgery.attach": ("attach",),
    "surgery.check_trained": ("check_trained",),
    "surgery.extract": ("extract",),
    "formats": ("detect", "load", "save"),
    "layers": (
        "AdaptedLayer",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "ConvLoRA",
        "Embedding",
        "Linear",
        "LoRALayer",
        "MergedLinear",
        "MergedStateDictWarning",
        "register_layer",
    ),
    "surgery.load_legacy": ("LegacyReport", "load_legacy"),
    "surgery.eject": ("eject",),
    "surgery.inject": ("inject",),
    "surgery.merge": ("disabled", "merge", "merged", "merged_state_dict", "unmerge"),
    "surgery.suggest": ("Suggestion", "suggest"),
    "surgery.trainable": ("lora_state_dict", "mark_only_lora_as_trainable"),
    "adapters.convolution_updates": ("ConvolutionUpdate", "LegacyConvolutionUpdate"),
    "adapters.embedding_update": ("EmbeddingUpdate",),
    "adapters.expert_forms": ("split_experts", "stack_experts"),
    "adapters.experts_update": ("ExpertsUpdate",),
    "adapters.fused_update": ("FusedUpdate",),
    "adapters.updates": ("LoRAUpdate", "ProjectionUpdate"),
}
_OF_0_1 = {"star_0_1": ("Dict", "F", "List", "Optional", "math", "nn", "torch")}  # what its star import gave, too
_HOME = {known: home for home, names in (_HOMES | _OF_0_1).items() for known in names}

__all__ = [*_HOME, "layers", "name", "utils"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_HOME})
