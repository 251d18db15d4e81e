"""The recipes of the LoRA paper for GPT-2 (Hu et al. 2021, section 5.4).

`paper`    Table 11, for query and value of GPT-2 medium and large alike
`scripts`  the command lines of loralib 0.1's README: the same training ("see our paper") from the seed 110, and decoding with a
           length penalty of 0.8 for all tasks, where Table 11 has 0.9 for E2E

Both reported the mean of three seeds. The scripts' GPT-2 has no dropout of its own, does not clip gradients, and has an ε of
1e-6 in AdamW; the paper does not speak of these, so both presets have them. Table 11's dropout is that of the LoRA layers.
The epoch that is kept is the one with the lowest perplexity on the development set.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ...architectures import PAPER_DECODERS
from ...errors import ConfigError
from .recipe import Preset, PresetName, family_of, no_family

TASKS = ("e2e", "webnlg", "dart")
TRAINING_ROWS = {"e2e": 42_061, "webnlg": 18_025, "dart": 62_659}
SEEDS = 3
MEDIUM, LARGE = "gpt2-medium", "gpt2-large"

_TRAINING: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 32.0,
    "layers": "query,value",
    "base_dropout": 0.0,
    "learning_rate": 2e-4,
    "num_train_epochs": 5.0,
    "batch_size": 8,
    "per_device_eval_batch_size": 16,
    "warmup_steps": 500,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.0,
    "max_length": 512,
}
_REGULARISED = {"weight_decay": 0.01, "lora_dropout": 0.1, "label_smoothing_factor": 0.1}
_PLAIN = {"weight_decay": 0.0, "lora_dropout": 0.0, "label_smoothing_factor": 0.0}

_PAPER = {"e2e": _TRAINING | _REGULARISED, "webnlg": _TRAINING | _REGULARISED, "dart": _TRAINING | _PLAIN}

TABLES: Mapping[PresetName, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "paper": _PAPER,
        "scripts": {task: values | {"seed": 110} for task, values in _PAPER.items()},
    }
)


@dataclass(frozen=True)
class Decoding:
    """How text is generated: by beam search, or by sampling. `ConfigError` for values that cannot work.

    beams: how many; 1 is greedy. length_penalty: a beam's score is Σ log p / length^length_penalty. no_repeat_ngram: the n of
    the n-grams that come once in a text; 0 allows all. max_new_tokens: the most tokens of a text. temperature: 0 takes the most
    probable token, more samples from softmax(logits / temperature). top_p: the probability of the tokens that are sampled from.
    stop: strings before which a text ends.
    """

    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("beams", 1), ("no_repeat_ngram", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least {least}.")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty={self.length_penalty}: must be a finite number.")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be 0 (no sampling) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: must be above 0 and at most 1.")
        if self.top_p < 1 and not self.temperature:
            raise ConfigError(f"top_p={self.top_p} has no effect without sampling; give a temperature, such as 0.7.")
        if self.temperature and self.beams > 1:
            raise ConfigError(f"temperature={self.temperature} has no effect on beam search; give 1 beam.")
        if not all(self.stop):
            raise ConfigError("stop: an empty string would end every text; leave it out.")


CHATTING = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=256)  # what runs of chats use

DECODING: Mapping[PresetName, Mapping[str, Decoding]] = MappingProxyType(
    {
        "paper": {
            "e2e": Decoding(length_penalty=0.9),
            "webnlg": Decoding(length_penalty=0.8),
            "dart": Decoding(length_penalty=0.8),
        },
        "scripts": dict.fromkeys(TASKS, Decoding(length_penalty=0.8)),
    }
)


def resolve(preset: PresetName, task: str, model: str | None) -> Preset:
    """The recipe `preset` of one of `TASKS` for a model; `ConfigError` when the paper has none for it."""
    if family_of(model or "", PAPER_DECODERS) is None:
        raise no_family(preset, model, (MEDIUM, LARGE))
    values = {"task": task, "method": "lora", **TABLES[preset][task]}
    return Preset(MappingProxyType(values), SEEDS, "mean")
