"""`loralib generate`: generate text with a run, for inputs of a task, of a file or on the command line."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RunError
from ..printing import printable
from ..recipes.declaring import SEED
from ..recipes.presets.nlg import CHATTING, DECODING, Decoding
from .offline import hub_names, offline_if_unreachable
from .parsing import OneSentenceParser, add_run, add_trust, to_path
from .terminal import say, warn

if TYPE_CHECKING:
    from datasets import Dataset

    from ..recipes.options import TrainOptions

HELP = {
    "beams": ("N", "number of beams; 1 is greedy search"),
    "length_penalty": ("X", "exponent of the length by which a beam's log probability is divided"),
    "no_repeat_ngram": ("N", "no n-gram of this size occurs twice in a text; 0 allows all"),
    "max_new_tokens": ("N", "maximum number of generated tokens per text"),
    "temperature": ("X", "sample tokens at this temperature; 0 takes the most probable ones"),
    "top_p": ("P", "sample from the most probable tokens that together have this probability"),
}
_INTEGERS = ("beams", "no_repeat_ngram", "max_new_tokens")


def run(words: Sequence[str]) -> int:
    """Generate; returns the exit code."""
    parsed = parser().parse_intermixed_args(words)
    _check(parsed)

    from ..recipes import run_folder

    found = run_folder.runs_of(parsed.run)
    if parsed.output and len(found) > 1:
        raise ConfigError(f"--output names one file, and {parsed.run} holds {len(found)} seeds; leave it out.")
    for folder in found:
        options, _ = run_folder.read_options(folder)
        decoding = decoding_of(parsed, _usual(parsed.preset, options))
        with offline_if_unreachable(*hub_names(options)):
            if parsed.texts:
                _print(folder, parsed, decoding)
            else:
                _write(folder, parsed, options, decoding)
    task = options.task or "any"
    if not parsed.texts and not parsed.output and parsed.split == "test":
        say(printable(f"Score them: loralib score {task} {parsed.run}"))
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog="loralib generate",
        usage="RUN (INPUT ... | --split SPLIT | --data FILE) [options]",
        description="Generate text with the model of a run (or of each seed in a folder of seeds), by beam search. Texts for "
        "inputs on the command line are printed, a line each; those for a split or a file are written to RUN/generated/.",
        examples=(
            'loralib generate runs/mine "name : The Vaults | food : French"',
            "loralib generate runs/e2e-lora --split test",
            "loralib generate runs/mine --data inputs.jsonl --beams 1 -o outputs.jsonl",
        ),
    )
    add_run(made)
    made.add_argument("texts", nargs="*", metavar="INPUT", help="inputs to generate text from")
    what = made.add_argument_group("inputs from data")
    what.add_argument("--split", choices=["test", "dev", "train"], help="inputs of a split of the run's task")
    what.add_argument(
        "--data-dir", type=to_path, metavar="DIR", help="folder with the task's own files (default: as in training)"
    )
    what.add_argument("--data", type=to_path, metavar="FILE", help="inputs of a .jsonl file with the columns of training")
    what.add_argument("--max-inputs", type=int, metavar="N", help="only the first N inputs")
    what.add_argument(
        "-o", "--output", type=to_path, metavar="FILE", help=".jsonl file to write (default: RUN/generated/SPLIT.jsonl)"
    )
    what.add_argument("--resume", action="store_true", help="continue a file that was interrupted")
    what.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    how = made.add_argument_group("decoding")
    how.add_argument("--preset", choices=list(DECODING), default="paper", help="recipe whose decoding is used (default: paper)")
    add_sampling(how)
    how.add_argument("--base", action="store_true", help="generate with the model as it was before LoRA, for comparison")
    how.add_argument("--batch-size", type=int, default=16, metavar="N", help="inputs decoded at once (default: 16)")
    add_trust(made)
    return made


def _check(parsed: Any) -> None:
    sources = [bool(parsed.texts), bool(parsed.split), bool(parsed.data)]
    if sum(sources) != 1:
        raise ConfigError("give one of: inputs in quotes, --split of the run's task, or --data, a .jsonl file.")
    if parsed.texts and (parsed.data_dir or parsed.output or parsed.resume or parsed.overwrite or parsed.max_inputs):
        raise ConfigError("inputs on the command line are printed, not written; leave the options of files out.")
    if parsed.data_dir and not parsed.split:
        raise ConfigError("--data-dir belongs to --split; add it, or leave it out.")
    if parsed.resume and parsed.overwrite:
        raise ConfigError("--overwrite and --resume contradict each other; give one of them.")
    for name in ("batch_size", "max_inputs"):
        if getattr(parsed, name) is not None and getattr(parsed, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(parsed, name)}: must be positive.")
    if parsed.output and parsed.output.suffix != ".jsonl":
        raise ConfigError(f"--output {parsed.output}: must end in .jsonl.")


def add_sampling(group: Any) -> None:
    """Add the options of decoding."""
    for name, (metavar, help_) in HELP.items():
        kind = int if name in _INTEGERS else float
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=help_)
    group.add_argument("--stop", action="append", metavar="TEXT", help="end a text before this string; may be repeated")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of sampling (default: 0)")


def decoding_of(parsed: Any, usual: Decoding) -> Decoding:
    """How to decode: as is usual, but for the options that are given. Raises `ConfigError` for those that cannot work."""
    if not SEED.holds(parsed.seed):
        raise ConfigError(f"--seed {parsed.seed}: {SEED.words}.")
    given = {field.name: getattr(parsed, field.name) for field in fields(Decoding)}
    changed = {name: value for name, value in given.items() if value is not None}
    return Decoding(**asdict(usual) | changed | {"stop": tuple(parsed.stop or ())})


def _usual(preset: Any, options: "TrainOptions") -> Decoding:
    """How texts of a run are decoded where no option says more."""
    return CHATTING if options.kind in ("chat", "preference") else DECODING[preset].get(options.task or "", Decoding())


def _print(folder: Path, parsed: Any, decoding: Decoding) -> None:
    from ..recipes.nlg import generator

    run = generator.open_run(folder, parsed.trust_remote_code)
    texts = run.generate(parsed.texts, decoding, parsed.batch_size, base=parsed.base, seed=parsed.seed)
    for text in texts:
        say("\n".join(map(printable, text.split("\n"))))
    _warn_of_empty(texts)


def _warn_of_empty(texts: Sequence[str]) -> None:
    """Warn when not a single text says anything."""
    if texts and not any(texts):
        warn(
            f"all {len(texts)} texts are empty: the model ends them at once. It may want its inputs in another form than the "
            "run gave them (chat_template in config.yaml), or training went wrong; try the same with --base."
        )


def _write(folder: Path, parsed: Any, options: "TrainOptions", decoding: Decoding) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ..recipes import run_folder
    from ..recipes.nlg import generator
    from ..recipes.records import source

    data = _data(parsed, options)
    name = (parsed.split or parsed.data.name.split(".")[0]) + "-base" * parsed.base
    path = parsed.output or folder / run_folder.GENERATED / f"{name}.jsonl"
    if parsed.resume and generator.is_finished(path):
        say(printable(f"Kept {path}, which is finished."))
        return
    run = generator.open_run(folder, parsed.trust_remote_code)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) if console.is_terminal else nullcontext() as progress:
        bar = progress.add_task(printable(folder.name), total=len(data)) if progress else None

        def on_progress(done: int) -> None:
            if progress is not None and bar is not None:
                progress.update(bar, completed=done)

        how = {name: getattr(parsed, name) for name in ("batch_size", "overwrite", "resume", "base", "seed")}
        try:
            texts = run.generate_into(path, data, decoding, on_progress=on_progress, **how)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; what was decoded is kept. Go on with the same words and --resume.") from None
    _warn_of_empty(texts)
    say(printable(f"Wrote {path} and {path.with_suffix('.txt').name}: the texts of {len(data):,} inputs of {source(data)}."))


def _data(parsed: Any, options: "TrainOptions") -> "Dataset":
    from ..recipes import records
    from ..recipes.chat import conversations
    from ..recipes.nlg.examples import read_jsonl
    from ..recipes.nlg.tasks import read_split

    if parsed.data and options.kind in ("chat", "preference"):
        data = conversations.inputs(records.read_records(parsed.data), str(parsed.data), options.layout)
    elif parsed.data:
        data = read_jsonl(parsed.data, options.context_column, options.completion_column)
    elif options.task is None:
        raise RunError(f"the run in {parsed.run} was trained on {options.data}, which has no splits; give --data.")
    else:
        data = read_split(options.task, parsed.split, parsed.data_dir or options.data_dir)
    return data.select(range(min(parsed.max_inputs or len(data), len(data))))
