"""`loralib train`: fine-tune a model into a run folder, or reproduce a recipe of the LoRA paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RunError
from ..recipes import presets, run_folder
from ..recipes.detection import with_problem
from ..recipes.options import PERMISSION, TrainOptions
from ..recipes.presets import Preset
from ..recipes.resolved import resolved
from ..storage.json_text import as_json
from .dataclass_parsing import OptionsParser, dataclass_parser, given
from .offline import check_local, hub_names, offline_if_unreachable
from .terminal import reporting, say_loading

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """Fine-tune a Hugging Face model with LoRA, on its last layers, or in full: an encoder to classify or score
text, or a causal language model to generate it or to chat. Writes a run folder with the adapter (or the model),
metrics.json, config.yaml, learning_curve.png and checkpoints."""
EXAMPLES = (
    "loralib train --model roberta-base --data train.tsv --eval-data dev.tsv",
    "loralib train --model roberta-base --task sst2 --r 16 --learning-rate 2e-4",
    "loralib train --model smollm2 --data conversations.jsonl --output runs/chat",
    "torchrun --nproc-per-node 4 -m -- loralib train --config run.yaml",
)
COMMON = (
    *("--model", "--data", "--task", "--eval-data", "--output", "--method", "--r", "--lora-alpha", "--target-modules"),
    *("--learning-rate", "--num-train-epochs", "--batch-size", "--seed", "--config"),
)


@dataclass(frozen=True)
class Stage:
    """One training job: with one seed into `folder`, or with several seeds into subfolders of it.

    single: whether the run folder is `folder` itself. preset: the recipe that it follows.
    """

    options: TrainOptions
    folder: Path
    seeds: int
    single: bool
    preset: Preset | None = None


def run(words: Sequence[str]) -> int:
    """Train; returns the exit code."""
    values = given(parser(), words)
    overwrite, resume, dry, in_json = (values.pop(name, False) for name in ("overwrite", "resume", "dry_run", "json"))
    preset, seeds = values.pop("preset", None), values.pop("seeds", None)
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume contradict each other; give one of them.")
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds {seeds}: must be positive.")
    stages = [_stage_to_resume(values, seeds, preset)] if resume else _stages(values, seeds, preset)
    if dry:
        return _describe(stages, in_json)
    check_local(stages[0].options)
    with reporting(in_json) as report:
        say_loading(str(stages[0].options.model))
        with offline_if_unreachable(*hub_names(stages[0].options)):
            results = _train_all(stages, overwrite, resume)
        report.update({"folder": str(stages[-1].folder), "runs": results})
    return 0


def _train_all(stages: Sequence[Stage], overwrite: bool, resume: bool) -> list[dict[str, Any]]:
    """Train one stage after the other; the last starts from the best seed of the one before."""
    from rich.console import Console

    from ..train.devices import processes
    from ..train.quiet import quiet_transformers

    with quiet_transformers():
        console = Console(quiet=not processes().is_main_process)
        *before, last = stages
        for stage in before:
            _prepare(stage, console)
            last = replace(last, options=replace(last.options, init_adapter=str(_best(stage))))
        return _train(last, overwrite, resume, console)


def parser() -> OptionsParser:
    """The parser of this command."""
    made = dataclass_parser(
        TrainOptions,
        "loralib train",
        usage="--model NAME (--data FILE | --task NAME) [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        common=COMMON,
    )
    group = made.section("run")
    group.add_argument("--preset", metavar="NAME", help="recipe of the LoRA paper: its tables (paper), or its code (scripts)")
    group.add_argument(
        "--seeds", type=int, metavar="N", help="train with N seeds, one run each (default: 1, or as in the preset)"
    )
    group.add_argument("--dry-run", action="store_true", help="print what would be trained, and train nothing")
    group.add_argument("--resume", action="store_true", help="continue the run in the output folder, with its options")
    group.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    group.add_argument("--json", action="store_true", help="print the result as JSON, and the rest to standard error")
    return made


def _stages(values: Mapping[str, Any], seeds: int | None, preset: str | None) -> list[Stage]:
    """The stages to train; a preset that starts from another task's adapter has a stage for that task first."""
    if preset is None:
        options = TrainOptions.of(with_problem(values)).with_absolute_paths()
        folder = Path(options.output or f"runs/{options.data_name}-{options.method}")
        return [Stage(options, folder, seeds or 1, single=seeds is None)]
    if values.get("method", "lora") != "lora":
        raise ConfigError(f"--preset {preset} is a recipe for LoRA; leave out --method {values['method']}.")
    recipe = presets.resolve(preset, values.get("task"), values.get("model"))
    options = TrainOptions.of(recipe.updated(values)).with_absolute_paths()
    folder = Path(options.output or _default_folder(preset, options.task, options.model))
    stages = [Stage(options, folder, seeds or recipe.seeds, single=False, preset=recipe)]
    if recipe.start_from and not options.init_adapter:
        shared = {name: value for name, value in values.items() if name not in ("task", "output", "metric", "init_adapter")}
        first = presets.resolve(preset, recipe.start_from, options.model)
        chosen = TrainOptions.of(first.updated(shared | {"task": recipe.start_from})).with_absolute_paths()
        where = folder.parent / Path(_default_folder(preset, recipe.start_from, options.model)).name
        stages.insert(0, Stage(chosen, where, 1, single=False, preset=first))
    return stages


def _default_folder(preset: str, task: str | None, model: str | None) -> str:
    return f"runs/{task}-{preset}-{(model or '').rstrip('/').rpartition('/')[2]}"


def _stage_to_resume(values: dict[str, Any], seeds: int | None, preset: str | None) -> Stage:
    """The stage in the output folder, with its own options. Raises `ConfigError` if a given option contradicts them."""
    if "output" not in values and not preset:
        raise RunError("--resume needs --output, the folder of the run to go on with.")
    folder = Path(values.pop("output", None) or _default_folder(preset or "", values.get("task"), values.get("model")))
    recipe = presets.resolve(preset, values.get("task"), values.get("model")) if preset else None
    if recipe:
        values = recipe.updated(values)
    if (folder / run_folder.SEEDS).is_file():
        options, count = run_folder.read_seeds(folder)
        return Stage(_unchanged(options, values, folder), folder, seeds or count, single=False, preset=recipe)
    if seeds is not None:
        raise ConfigError(f"--seeds {seeds}: {folder} holds no seeds to resume; leave --seeds or --resume out.")
    return Stage(_unchanged(run_folder.read_options(folder)[0], values, folder), folder, 1, single=True, preset=recipe)


def _unchanged(options: TrainOptions, values: Mapping[str, Any], folder: Path) -> TrainOptions:
    options = replace(options, trust_remote_code=values.get(PERMISSION, False))
    asked, kept = options.updated(values).with_absolute_paths().settled_as(options).flat(), options.flat()
    for name in values:
        if asked[name] != kept[name]:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {kept[name]!r} in the run in {folder}, and a resumed run keeps its options.")
    return options


def _prepare(stage: Stage, console: "Console") -> None:
    """Train the stage that another one starts from, unless it is finished already."""
    from ..recipes import seeds as many_seeds
    from ..train import rich_text

    if many_seeds.best_of(stage.folder) is None:
        rich_text.say(console, f"1 of 2: {stage.options.task}, whose factors the next starts from")
        _train(stage, overwrite=False, resume=(stage.folder / run_folder.SEEDS).is_file(), console=console)


def _best(stage: Stage) -> Path | None:
    from ..recipes import seeds as many_seeds

    return many_seeds.best_of(stage.folder.resolve())


def _train(stage: Stage, overwrite: bool, resume: bool, console: "Console") -> list[dict[str, Any]]:
    from ..recipes import report
    from ..recipes import seeds as many_seeds
    from ..recipes.run import train
    from ..train import rich_text
    from ..train.devices import processes

    options, folder = stage.options, stage.folder
    if stage.single:
        results = [train(options, folder, overwrite=overwrite, resume=resume)]
    else:
        results = many_seeds.train_seeds(options, folder, stage.seeds, overwrite=overwrite, resume=resume)
    if not processes().is_main_process:
        return results
    console.print(report.summary_table(results))
    if not stage.single:
        found = many_seeds.summary(results)
        average, unit = stage.preset.average if stage.preset else "median", options.task_kind.unit
        line = f"{average} of {len(results)}: {unit * found[average]:.1f} ± {unit * found['deviation']:.1f}"
        if stage.preset and stage.preset.reported:
            value, spread = stage.preset.reported
            line += f"; the paper, for the median of 5 and its own budget: {value:.1f} ± {spread:.1f}"
        rich_text.say(console, f"{found['metric']}, {line}")
    parts = ", ".join(sorted(path.name + "/" * path.is_dir() for path in stage.folder.iterdir() if path.name[0] != "."))
    rich_text.say(console, f"Wrote {stage.folder}/: {parts}.")
    if options.task and (following := options.task_kind.following):
        rich_text.say(console, f"Next: {following.format(run=folder, task=options.task)}")
    return results


def _describe(stages: Sequence[Stage], in_json: bool) -> int:
    """Print, as YAML or JSON, what would be trained: every option and the arguments of transformers' Trainer."""
    import yaml

    from ..recipes import training
    from ..train.devices import device_count

    if len(stages) > 1 and (start := _best(stages[0])):
        stages = [replace(stages[1], options=replace(stages[1].options, init_adapter=str(start)))]
    described = []
    for stage in stages:
        options, devices = stage.options, device_count()
        rows = min(options.max_train_rows or math.inf, presets.training_rows(options.task) or math.inf)
        known = rows if rows < math.inf else None
        trainer = training.argument_values(options, stage.folder, int(known or options.batch_size), devices)
        reported = stage.preset.reported if stage.preset else None
        steps = known and math.ceil(-(-known // options.batch_size) * options.num_train_epochs)
        described.append(
            {
                "folder": str(stage.folder),
                "seeds": list(range(options.seed, options.seed + stage.seeds)),
                "devices": devices,
                "training_rows": known,
                "steps": steps,
                "reported_by_the_paper": list(reported) if reported else None,
                "options": resolved(options),
                "trainer": trainer,
            }
        )
    if len(described) > 1:
        described[1]["options"]["init_adapter"] = f"the best seed in {stages[0].folder}"  # type: ignore[index]
    found = {"would_train": described}
    print(as_json(found) if in_json else yaml.safe_dump(found, sort_keys=False).rstrip())
    return 0
