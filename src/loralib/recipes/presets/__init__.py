"""The recipes of the LoRA paper (Hu et al. 2021) as data, by task and model, in two versions:

`paper`    the hyper-parameters that its appendix prints
`scripts`  the command lines that were published with loralib 0.1

`glue` has the understanding tasks, `nlg` the generation tasks.
"""

from typing import get_args

from ...architectures import PAPER_DECODERS
from ...errors import ConfigError
from . import glue, nlg
from .recipe import Preset, PresetName, family_of

__all__ = ["Preset", "PresetName", "glue", "nlg", "resolve", "training_rows", "usual_task"]


def resolve(preset: str, task: str | None, model: str | None) -> Preset:
    """The recipe `preset` of a task for a model; `ConfigError` when there is none.

    >>> resolve("paper", "mrpc", "FacebookAI/roberta-base").values["learning_rate"]
    0.0004
    >>> resolve("paper", "e2e", "gpt2-medium").values["label_smoothing_factor"]
    0.1
    """
    if preset not in get_args(PresetName):
        raise ConfigError(f"--preset {preset}: must be one of {', '.join(get_args(PresetName))}.")
    name: PresetName = preset  # type: ignore[assignment]
    if task in glue.TASKS:
        return glue.resolve(name, str(task), model)
    if task in nlg.TASKS:
        return nlg.resolve(name, str(task), model)
    raise ConfigError(f"--preset {preset} needs --task, one of {', '.join((*glue.TASKS, *nlg.TASKS))}; got {task}.")


def usual_task(model: str) -> str:
    """A task that the paper trained `model` on: "e2e" where that is a GPT-2, else "mnli"."""
    return "e2e" if family_of(model, PAPER_DECODERS) else "mnli"


def training_rows(task: str | None) -> int | None:
    """How many training rows a task has; None where that is not known."""
    return {**glue.TRAINING_ROWS, **nlg.TRAINING_ROWS}.get(task or "")
