"""Prefix tuning (Li & Liang 2021, 2101.00190) by PEFT: in every block, keys and values that are learned stand before those of
the tokens.

    softmax(Q·[P_K; K]ᵀ/√d)·[P_V; V]        P_K, P_V (length, heads·d) of each block, all of them trained; the model is frozen

What is trained is saved as PEFT saves it: a folder with `adapter_config.json` and `adapter_model.safetensors`, the head's
weights among them, which `PeftModel.from_pretrained` reads. Trainer's own way of going on from such a folder refuses prefixes.
"""

import inspect
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME

from ..errors import ConfigError, RunError
from ..storage import safetensors
from ..storage.atomic import read_json, write_together
from ..storage.json_text import as_json
from .sampling import GroupingTrainer

PACKAGE = "peft"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_installed() -> None:
    """`RunError` where PEFT is not installed."""
    if find_spec(PACKAGE) is None:
        raise RunError(f"method=prefix needs the package {PACKAGE}; run: pip install {PACKAGE}")


def check_takes_prefix(model: PreTrainedModel) -> None:
    """`ConfigError` for a model whose blocks take no keys and values from outside."""
    if not any("past_key_values" in inspect.signature(part.forward).parameters for part in (model, model.base_model)):
        raise ConfigError(
            f"method='prefix': {model.name_or_path!r}, a {model.config.model_type} model, takes no keys and values in front of "
            "those of its tokens; use another method, such as lora."
        )


def add_prefix(model: PreTrainedModel, length: int, task_type: str, head: Sequence[str] = ()) -> Any:
    """`model` with a prefix of `length` tokens, within PEFT's model; the prefix and copies of the modules `head` are trained.

    task_type: what PEFT calls the task. Raises `ConfigError` as `check_takes_prefix`, and `RunError` as `check_installed`.
    """
    check_installed()
    import peft

    check_takes_prefix(model)
    config = peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=length, modules_to_save=list(head) or None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # which PEFT 0.21 asks for
        return peft.get_peft_model(model, config)


def trained_tensors(model: Any) -> dict[str, Tensor]:
    """The prefix and the head as PEFT names them in files, on the CPU."""
    import peft

    found = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def save_prefix(model: Any, folder: Path) -> None:
    """Write what is trained as PEFT's folder."""
    config = model.active_peft_config
    saved = {"inference_mode": True, "base_model_name_or_path": model.name_or_path}
    described = config.to_dict() | saved | {"modules_to_save": list(dict.fromkeys(config.modules_to_save or ())) or None}
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.tensor_bytes(trained_tensors(model), {"format": "pt"})
    write_together({folder / WEIGHTS: weights, folder / CONFIG: (as_json(described, indent=2) + "\n").encode()})


def load_prefix(model: Any, folder: Path) -> None:
    """Give the model what is saved in `folder`. Raises `RunError` where that is not what this model has."""
    import peft

    path = folder / WEIGHTS
    header = safetensors.read_header(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in trained_tensors(model).items()}
    found = {name: entry.shape for name, entry in header.entries.items()}
    if wanted != found:
        off = next(name for name in [*wanted, *found] if wanted.get(name) != found.get(name))
        raise RunError(f"{path} has {off!r} in shape {found.get(off)}, and the run needs {wanted.get(off)}; train it again.")
    peft.set_peft_model_state_dict(model, safetensors.mapped_tensors(path, header))


def open_prefix(model: PreTrainedModel, folder: Path) -> Any:
    """`model` with the prefix and the head that are saved in `folder`, within PEFT's model."""
    config = read_json(folder / CONFIG)
    length, task_type, head = config.get("num_virtual_tokens"), config.get("task_type"), config.get("modules_to_save") or []
    if not isinstance(length, int) or not isinstance(task_type, str) or not isinstance(head, list):
        raise RunError(f"{folder / CONFIG} does not describe a prefix; train it again.")
    with_prefix = add_prefix(model, length, task_type, list(map(str, head)))
    load_prefix(with_prefix, folder)
    return with_prefix


def length_of(model: nn.Module) -> int:
    """How many tokens long the prefix of `model` is; 0 where it has none."""
    encoders = model._modules.get("prompt_encoder")
    held = [module for module in encoders.modules() if isinstance(module, nn.Embedding)] if encoders else []
    return max((embedding.num_embeddings for embedding in held), default=0)


def count_parameters(model: Any) -> dict[str, int]:
    """How many parameters are trained, how many of them are the prefix, and how many the base model has."""
    from peft.utils import ModulesToSaveWrapper

    copies = [module.modules_to_save for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    prefix, copied = _size(model.prompt_encoder), sum(map(_size, copies))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"trained": trained, "lora": 0, "prefix": prefix, "total": _size(model) - prefix - copied}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class PrefixTrainer(GroupingTrainer):
    """Trainer whose checkpoints hold the prefix and the head, never the base model."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        save_prefix(self.model, folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_prefix(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        load_prefix(self.model, Path(best))
