"""The recipes of the LoRA paper for GLUE (Hu et al. 2021, section 5.1), as data.

`paper`    Tables 9 and 10 as printed. The batch sizes look like those of one device (those of `scripts` are mostly eight times
           as large), and for DeBERTa they print r = 8, though 4.7M trained parameters, and the checkpoint that was released,
           mean r = 16. They say nothing of RoBERTa's weight decay; here it is that of the scripts.
`scripts`  the command lines that were published with loralib 0.1.

Both reported the median of five seeds, each at its best epoch (Table 2). MRPC, RTE and STS-B start from the LoRA factors of
MNLI. The columns of all tables are in the order of `TASKS`. Texts are not padded to their greatest length here, as the scripts'
are; padding is masked, so this changes speed alone.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ...architectures import PAPER_ENCODERS
from .recipe import Preset, PresetName, family_of, no_family

TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
TRAINING_ROWS = dict(zip(TASKS, (392_702, 67_349, 3_668, 8_551, 104_743, 363_846, 2_490, 5_749), strict=True))
FROM_MNLI = ("mrpc", "rte", "stsb")
SEEDS = 5
BASE, LARGE, XXL = "roberta-base", "roberta-large", "deberta-v2-xxlarge"


def _columns(common: Mapping[str, Any], **columns: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """By task: what is common to all, and its entry of each column; None there leaves an option at its default."""
    rows = {task: dict(common) for task in TASKS}
    for name, column in columns.items():
        for task, value in zip(TASKS, column, strict=True):
            if value is not None:
                rows[task][name] = value
    return rows


_ROBERTA: dict[str, Any] = {"r": 8, "warmup_ratio": 0.06, "weight_decay": 0.1}
_RATES_BASE = (5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4)
_EPOCHS_BASE = (30, 60, 30, 80, 25, 25, 80, 40)
_DECAY_XXL = (0.0, 0.01, 0.01, 0.0, 0.01, 0.01, 0.01, 0.1)
_DROPOUT_XXL = (0.15, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2)

# fmt: off
TABLES: Mapping[tuple[PresetName, str], Mapping[str, Mapping[str, Any]]] = MappingProxyType({
    ("paper", BASE): _columns(
        _ROBERTA | {"lora_alpha": 8.0, "max_length": 512},
        #                MNLI  SST-2 MRPC  CoLA  QNLI  QQP   RTE   STS-B
        batch_size=     (16,   16,   16,   32,   32,   16,   32,   16),
        num_train_epochs=_EPOCHS_BASE,
        learning_rate=  _RATES_BASE,
    ),
    ("paper", LARGE): _columns(
        _ROBERTA | {"lora_alpha": 16.0},
        batch_size=     (4,    4,    4,    4,    4,    4,    8,    8),
        num_train_epochs=(10,   10,   20,   20,   10,   20,   20,   30),
        learning_rate=  (3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4),
        max_length=     (128,  128,  512,  128,  512,  512,  512,  512),
    ),
    ("paper", XXL): _columns(
        {"r": 8, "lora_alpha": 8.0, "warmup_ratio": 0.1},
        batch_size=     (8,    8,    32,   4,    6,    8,    4,    4),
        num_train_epochs=(5,    16,   30,   10,   8,    11,   11,   10),
        learning_rate=  (1e-4, 6e-5, 2e-4, 1e-4, 1e-4, 1e-4, 2e-4, 2e-4),
        weight_decay=   _DECAY_XXL,
        head_dropout=   _DROPOUT_XXL,
        max_length=     (256,  128,  128,  64,   512,  320,  320,  128),
    ),
    ("scripts", BASE): _columns(
        _ROBERTA | {"lora_alpha": 16.0, "max_length": 512},
        batch_size=     (128,  128,  128,  64,   256,  128,  256,  128),
        device_batch_size=(16, 16,   16,   32,   32,   16,   32,   16),
        num_train_epochs=_EPOCHS_BASE,
        learning_rate=  _RATES_BASE,
    ),
    ("scripts", LARGE): _columns(
        _ROBERTA | {"lora_alpha": 16.0},
        batch_size=     (32,   64,   32,   32,   32,   32,   64,   32),
        device_batch_size=(4,  8,    4,    4,    4,    4,    8,    4),
        num_train_epochs=(10,   10,   20,   20,   10,   20,   20,   10),
        learning_rate=  (3e-4, 4e-4, 3e-4, 3e-4, 2e-4, 3e-4, 4e-4, 3e-4),
        max_length=     (128,  512,  512,  128,  512,  512,  512,  128),
    ),
    ("scripts", XXL): _columns(
        {"r": 16, "lora_alpha": 32.0, "fp16": True},
        batch_size=     (64,   64,   256,  32,   48,   64,   32,   32),
        device_batch_size=(8,  8,    32,   4,    6,    8,    4,    4),
        num_train_epochs=(5,    16,   30,   10,   8,    11,   11,   10),
        learning_rate=  (1e-4, 6e-5, 2e-4, 1.3e-4, 1e-4, 1e-4, 2.6e-4, 2e-4),
        warmup_steps=   (1000, 1000, None, 100,  500,  10000, 50,  100),
        warmup_ratio=   (None, None, 0.1,  None, None, None, None, None),
        weight_decay=   _DECAY_XXL,
        head_dropout=   _DROPOUT_XXL,
        max_length=     (256,  128,  128,  64,   512,  320,  320,  128),
    ),
})

REPORTED: Mapping[str, Mapping[str, tuple[float, float]]] = MappingProxyType({  # Table 2: hundredths, and their spread
    model: dict(zip(TASKS, row, strict=True)) for model, row in {
        BASE:  ((87.5, 0.3), (95.1, 0.2), (89.7, 0.7), (63.4, 1.2), (93.3, 0.3), (90.8, 0.1), (86.6, 0.7), (91.5, 0.2)),
        LARGE: ((90.6, 0.2), (96.2, 0.5), (90.9, 1.2), (68.2, 1.9), (94.9, 0.3), (91.6, 0.1), (87.4, 2.5), (92.6, 0.2)),
        XXL:   ((91.9, 0.2), (96.9, 0.2), (92.6, 0.6), (72.4, 1.1), (96.0, 0.1), (92.9, 0.1), (94.9, 0.4), (93.0, 0.2)),
    }.items()
})
# fmt: on

_ACCURACY = ("mrpc", "qqp")  # whose own metric is F1; Table 2 has their accuracy


def resolve(preset: PresetName, task: str, model: str | None) -> Preset:
    """The recipe `preset` of one of `TASKS` for a model; `ConfigError` when the paper has none for it."""
    family = family_of(model or "", PAPER_ENCODERS)
    if family is None:
        raise no_family(preset, model, (BASE, LARGE, XXL))
    values: dict[str, Any] = {"task": task, "method": "lora", **TABLES[preset, family][task]}
    if task in _ACCURACY:
        values["metric_for_best_model"] = "accuracy"
    start = "mnli" if task in FROM_MNLI else None
    return Preset(MappingProxyType(values), SEEDS, "median", start, REPORTED[family][task])
