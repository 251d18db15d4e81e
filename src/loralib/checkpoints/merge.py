"""Merging an adapter into a model's files, file to file: no model is built, and no weight is in memory as a whole.

Every file of weights becomes one of the same name (a pickled one a safetensors file) with the same tensors, in which the
adapted ones are W + ΔW, computed in blocks of rows by several threads (see `write`). The folder's other files are copied (see
`other_files`); `config.json` says which class the result has (see `classifiers`). All of it is written to a temporary folder
next to `output`, which is renamed at the end.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import ops
from ..adapters.adapter import Adapter, check_adapter
from ..arguments import as_path
from ..choices import TiedWeights, names
from ..errors import ConfigError, FormatError
from ..formats import load
from ..storage import hub
from ..storage.folders import all_files, write_mark
from ..storage.swap import check_place, new_folder, sole_writer
from .checkpoint import SAFE, open_checkpoint
from .merge_plan import Plan, planned
from .other_files import OtherFiles, check_links, other_files
from .write import file_of

Progress = Callable[[int, int], None]

_TITLE = "loralib merge"


@dataclass(frozen=True)
class MergeReport:
    """What `merge_checkpoint` wrote.

    Attributes:
        path: The folder.
        layers: How many layers the adapter has.
        tensors: How many tensors are not the base's, those trained in full included.
        files: How many files of weights there are.
        nbytes: How many bytes the tensors have.
        added: The tensors that the base does not have.
        untied: Whether the output layer was untied from the embedding.
        left_out: Files in the base's folder that were not copied: the weights again, in another format.
        architecture: The class that `config.json` names, where it is not the base's.

    Example:
        >>> import pathlib
        >>> lora.MergeReport(pathlib.Path("merged"), layers=24, tensors=24, files=1, nbytes=10**9).added
        ()
    """

    path: Path
    layers: int
    tensors: int
    files: int
    nbytes: int
    added: tuple[str, ...] = ()
    untied: bool = False
    left_out: tuple[str, ...] = ()
    architecture: str | None = None


def merge_checkpoint(
    base: str | os.PathLike[str],
    adapter: Adapter | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tied: TiedWeights = "refuse",
    labels: Sequence[str] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    check: Callable[[Path], None] | None = None,
) -> MergeReport:
    """Write to the folder `output` the model at `base`, a folder or a file of weights, with `adapter` merged into it.

    Every W + ΔW has the bits that `merge` gives in a model: computed in at least float32, and rounded once to the dtype of W.
    Tensors trained in full take the places of the base's, or are added; trained token embeddings replace their rows. In memory
    are the adapter and a few blocks of 2 MiB a thread (for DoRA and 0.1's and transposed convolutions, whole weights).

    Args:
        base: The model's folder, or its file of weights.
        adapter: The adapter to merge, or the path of its files; to merge several, `combine` them first.
        output: The folder to write. It appears when it is complete; nothing is left behind on an error or Ctrl-C.
        tied: When an update is for an embedding that the output layer shares, or for that layer: "refuse", or "untie", which
            writes both and says so in `config.json`.
        labels: The names of the classes, for `config.json`, when the adapter brings a head that classifies (its `task_type` is
            "SEQ_CLS" or "TOKEN_CLS"). Default: the base's, where it has as many, or LABEL_0, LABEL_1 and so on.
        threads: Default: one for each core.
        overwrite: Replace what an earlier merge wrote to `output`, if nothing else is there.
        progress: Called with bytes done and bytes in all.
        check: Called with the complete folder before it takes its place. When it raises, what was at `output` is still there.

    Returns:
        What was written.

    Raises:
        FormatError: When the adapter does not fit the base (everything is listed), the base is quantized or holds a link that
            leads out of its folder, or `output` exists.
        ConfigError: When `tied` is unknown, or `labels` do not fit the head.
        RunError: When another process is writing `output`.
        ArgumentError: When an argument is of another kind.
        OSError: When the disk is full.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file, save_file
        >>> adapter = lora.Adapter(lora.LoRAConfig(r=1), {"proj": lora.LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), 1)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"proj.weight": torch.eye(2)}, folder + "/model.safetensors")
        ...     report = lora.merge_checkpoint(folder + "/model.safetensors", adapter, folder + "/merged")
        ...     load_file(folder + "/merged/model.safetensors")["proj.weight"]
        tensor([[2., 1.],
                [1., 2.]])
    """
    base, output = hub.located(as_path(base, "base")), as_path(output, "output")
    if isinstance(adapter, str | os.PathLike):
        adapter = load(adapter)
    check_adapter(adapter)
    if tied not in names(TiedWeights):
        raise ConfigError(f"tied={tied!r}: must be 'refuse' or 'untie'.")
    with sole_writer(output, _TITLE):
        _check_place(output, Path(base), overwrite)
        if Path(base).is_dir():
            check_links(Path(base))
        plan = planned(open_checkpoint(base), adapter, tied, labels)
        folder, weights = plan.checkpoint.path, set(plan.checkpoint.files)
        others = other_files(folder, weights) if folder.is_dir() else OtherFiles()
        with new_folder(output) as work:
            _write(plan, others, work, threads or os.cpu_count() or 1, progress or (lambda done, total: None))
            if check is not None:
                check(work)
    targets = plan.targets()
    return MergeReport(
        output,
        len(adapter.layers),
        sum(not target.is_copy for target in targets),
        len(plan.files),
        sum(target.nbytes for target in targets),
        tuple(target.name for target in targets if not target.source),
        plan.untied,
        others.left_out,
        plan.config["architectures"][0] if plan.changes_architecture else None,
    )


def _check_place(output: Path, base: Path, overwrite: bool) -> None:
    """`FormatError` when the result may not be put at `output`: only what a merge wrote is replaced, and never the base."""
    if overwrite and output.is_dir() and base.resolve().is_relative_to(output.resolve()):
        raise FormatError(f"{output} is or holds the base, which would be lost; choose another place. Nothing was written.")
    check_place(output, _TITLE, overwrite)


# --- writing --------------------------------------------------------------------------------------------------------


def _write(plan: Plan, others: OtherFiles, work: Path, threads: int, progress: Progress) -> None:
    total = sum(target.nbytes for target in plan.targets())
    done = 0
    with ops.single_threads(threads) as pool:
        for name, targets in plan.files.items():
            with file_of(plan.checkpoint, targets, work / name) as tasks:
                futures = [pool.submit(task) for task in tasks]
                try:
                    for future in futures:
                        done += future.result()
                        progress(done, total)
                except BaseException:
                    for future in futures:
                        future.cancel()
                    raise
    _copy_others(plan, others, work)
    write_mark(work, _TITLE, list(all_files(work)))


def _copy_others(plan: Plan, others: OtherFiles, work: Path) -> None:
    """Copy the files that hold no weights, and write the index and, where it changed, the configuration."""
    for name in others.copied:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plan.checkpoint.path / name, work / name)
    if plan.changes_config:
        (work / "config.json").write_text(json.dumps(dict(plan.config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if len(plan.files) > 1:
        stem = "diffusion_pytorch_model" if next(iter(plan.files)).startswith("diffusion") else "model"
        weight_map = {target.name: file for file, targets in plan.files.items() for target in targets}
        total = sum(target.nbytes for target in plan.targets())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (work / f"{stem}{SAFE}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
