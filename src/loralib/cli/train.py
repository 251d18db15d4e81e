"""`loralib train`: from a model, a data set and a method to a run folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunError
from ..recipes.options import TrainOptions
from .parsing import dataclass_parser, given

DESCRIPTION = """Fine-tune a Hugging Face encoder on labelled text, with LoRA, on its last layers, or in full. Writes a run
folder: the adapter (or model), metrics.json, config.yaml, learning_curve.png and checkpoints. On several GPUs:
torchrun --nproc-per-node N -m loralib train ..."""


def run(words: Sequence[str]) -> int:
    """Train; returns the exit code."""
    parser = dataclass_parser(TrainOptions, "loralib train", DESCRIPTION)
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the output folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder, with its own options")
    values = given(parser, words)
    overwrite, resume = values.pop("overwrite", False), values.pop("resume", False)
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume contradict each other; give one of them.")
    if resume:
        if "output" not in values:
            raise RunError("--resume needs --output, the folder of the run to go on with.")
        folder = Path(values.pop("output"))
        options = _options_of_run(folder, values)
    else:
        options = TrainOptions(**values).with_absolute_paths()
        folder = Path(options.output or f"runs/{options.data_name}-{options.method}")

    from rich.console import Console  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from ..recipes import report, text_classification, training  # noqa: PLC0415

    transformers_logging.set_verbosity_error()
    results = text_classification.train(options, folder, overwrite=overwrite, resume=resume)
    if not training.processes().is_main_process:
        return 0
    console = Console()
    console.print(report.summary_table([results]))
    parts = ", ".join(sorted(path.name + "/" * path.is_dir() for path in folder.iterdir()))
    console.print(f"Wrote {folder}/: {parts}.", highlight=False, soft_wrap=True)
    return 0


def _options_of_run(folder: Path, values: dict[str, Any]) -> TrainOptions:
    """The options that the run was begun with; `ConfigError` when a word contradicts one of them."""
    from ..recipes import runs  # noqa: PLC0415

    options, _ = runs.read_options(folder)
    asked = replace(options, **values).with_absolute_paths()
    for name in values:
        if getattr(asked, name) != getattr(options, name):
            flag, kept = name.replace("_", "-"), getattr(options, name)
            raise ConfigError(f"--{flag} is {kept!r} in the run in {folder}, and a resumed run keeps its options.")
    return options
