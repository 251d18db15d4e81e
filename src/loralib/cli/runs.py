"""Run folders in place of adapters: the adapter in a run, and the names of its classes."""

from pathlib import Path

_OF_A_RUN = ("config.yaml", "labels.json")  # `recipes.run_folder` needs a package for its files, and is imported for runs only
_OF_SEEDS = "seeds.yaml"


def is_run(folder: Path) -> bool:
    """Whether `loralib train` wrote to `folder`."""
    return all((folder / name).is_file() for name in _OF_A_RUN)


def adapter_in(path: Path) -> Path:
    """The adapter of the run at `path`; any other path is returned. Raises `RunError` if the run has no adapter (yet)."""
    if not is_run(path):
        return path
    from ..errors import RunError
    from ..recipes import run_folder

    options, _ = run_folder.read_options(path)
    if options.method == "prefix":
        raise RunError(f"the run in {path} trained a prefix, which is not a LoRA adapter; give a run of method=lora.")
    if options.method != "lora":
        model = path / run_folder.MODEL
        raise RunError(
            f"the run in {path} trained a whole model, which is in {model}; it has no adapter",
            f"make one of what changed: loralib extract {model} {options.model} --r 16 -o ADAPTER",
        )
    return run_folder.trained_part(path, options)


def labels_of(path: Path) -> list[str] | None:
    """The names of the classes of the run that `path` is, or is the adapter of; None without a run, and for regression."""
    folder = path if is_run(path) else path.parent
    if not is_run(folder):
        return None
    from ..recipes import run_folder

    return run_folder.read_options(folder)[1]


def runs_in(path: Path) -> list[Path]:
    """The finished runs of a folder of seeds; any other path itself. Raises `RunError` when none is finished."""
    if not (path / _OF_SEEDS).is_file():
        return [path]
    from ..recipes import run_folder

    return run_folder.runs_of(path)
