"""Damaged folders, of base models and of runs, and what a command may do with them.

It may do its work (0) or refuse it in a sentence (2); nothing but its output may be another than before, and what is refused
leaves no output. An exception, a hang and any other exit code are findings.
"""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from mutation import Time, mutated
from safetensors.torch import save_file

import loralib as lora
from loralib.cli import MISUSED, main

SECONDS = 120  # the libraries of training are loaded in it
Tree = dict[str, bytes | str | None]
_WORDS = (
    None,
    True,
    -1,
    0,
    3,
    1e308,
    "",
    "x",
    [],
    {},
    "../../outside",
    "/etc/hostname",
    "[red]",
    "\x1b[31m",
    float("nan"),
    "sst2",
)


def make(folder: Path) -> Path:
    """A folder with a base model in one file, another in shards, an adapter, and a run of `loralib train` on the base."""
    torch.manual_seed(0)
    tensors = {f"h.{i}.{name}.weight": torch.randn(4, 3) for i in range(2) for name in "qv"}
    tensors |= {"emb.weight": torch.randn(7, 3), "norm.weight": torch.randn(3), "head.weight": torch.randn(2, 3)}
    base, shards = folder / "base", folder / "shards"
    for place in (base, shards):
        (place / "1_Pooling").mkdir(parents=True)
        (place / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
        (place / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 3}))
        (place / "tokenizer.json").write_text("{}")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    names = sorted(tensors)
    weights = {name: f"model-0000{1 + (i > 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(weights.values()):
        tuned = {name: tensors[name] + 0.1 * torch.randn_like(tensors[name]) for name in names if weights[name] == shard}
        save_file(tuned, shards / shard, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weights}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    layers = {name: lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4) for name in ("h.0.q", "h.1.v")}
    adapter = lora.Adapter(lora.LoRAConfig(r=2, target_modules=["q", "v"]), layers, {}, {"task_type": "SEQ_CLS"})
    lora.save(adapter, folder / "adapter")
    _make_run(folder / "run", base, adapter)
    return folder


def _make_run(run: Path, base: Path, adapter: lora.Adapter) -> None:
    from loralib.recipes import run_folder
    from loralib.recipes.options import TrainOptions

    options = TrainOptions.of({"model": str(base), "task": "sst2", "r": 2, "target_modules": "q,v"})
    run.mkdir()
    run_folder.RUN.begin(run)
    run_folder.write_options(run, options, ["negative", "positive"])
    head = {"classifier.weight": torch.randn(2, 3), "classifier.bias": torch.randn(2)}
    config = lora.LoRAConfig(r=2, target_modules=["q", "v"], modules_to_save=["classifier"])
    lora.save(lora.Adapter(config, adapter.layers, head, {"task_type": "SEQ_CLS"}), run / run_folder.ADAPTER)
    counts = {"trained": 28, "lora": 28, "total": 100}
    metrics = {"method": "lora", "metric": "accuracy", "value": 0.5, "parameters": counts, "history": [], "seed": 0}
    run_folder.write_metrics(run, metrics)


def tree(folder: Path) -> Tree:
    """All that is below a folder: files with their bytes, folders, and links with where they go."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def damage(folder: Path, rng: random.Random) -> list[str]:
    """Do one to three things to the files of a folder; what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            break
        path, act = rng.choice(files), rng.choice(_ACTS)
        act(path, rng)
        done.append(f"{act.__name__.strip('_')} {path.relative_to(folder)}")
    return done


def _mutate(path: Path, rng: random.Random) -> None:
    path.write_bytes(mutated({path.name: path.read_bytes()}, rng)[path.name])


def _value(path: Path, rng: random.Random) -> None:
    """Another value for a line of YAML; of other files, some bytes."""
    if path.suffix != ".yaml":
        _mutate(path, rng)
        return
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    at = rng.randrange(len(lines))
    key, colon, _ = lines[at].partition(":")
    lines[at] = (
        key + colon + " " + json.dumps(rng.choice(_WORDS)) if rng.random() < 0.8 else rng.choice(("", "\t- x", "a: &a [*a]"))
    )
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def _make_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(("/etc/hostname", "../outside.txt", path.name, "gone", ".")))


def _swap(path: Path, rng: random.Random) -> None:
    other = rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file() and not p.is_symlink()))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def _rename(path: Path, rng: random.Random) -> None:
    name = rng.choice(("[x]", "model.safetensors", "pytorch_model.bin", "a\nb", "config.json", ".hidden"))
    if not path.with_name(name).is_dir():
        path.rename(path.with_name(name))


_ACTS: tuple[Callable[[Path, random.Random], None], ...] = (
    _mutate, _mutate, _mutate, _value, _value, _value, _empty, _remove, _make_folder, _link, _swap, _rename,
)  # fmt: skip


def commands(folder: Path, out: Path, kind: str) -> Mapping[str, list[str]]:
    """The commands that read a folder of a kind, in `folder`, and write `out` if anything."""
    base, shards, adapter, run = (str(folder / name) for name in ("base", "shards", "adapter", "run"))
    into = ["-o", str(out)]
    if kind == "run":
        return {
            "merge": ["merge", base, run, *into],
            "info": ["info", run],
            "info of its adapter": ["info", f"{run}/adapter", "--json"],
            "resume": ["train", "--output", run, "--resume"],
            "score": ["score", "e2e", run],
        }
    return {
        "merge": ["merge", base, adapter, *into],
        "merge shards": ["merge", shards, adapter, *into, "--check"],
        "extract": ["extract", base, shards, "--r", "1", *into],
        "extract shards": ["extract", shards, base, "--r", "1", *into],
        "intruders": ["info", adapter, "--base", base],
    }


@contextlib.contextmanager
def copied(pristine: Path, place: Path) -> Iterator[Path]:
    """A copy of a folder for the block."""
    shutil.copytree(pristine, place)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def tried(pristine: Path, place: Path, kind: str, rng: random.Random) -> tuple[str, int]:
    """Damage one folder of a copy of `pristine`, and let a command read it; what was done, and its exit code."""
    with copied(pristine, place) as folder:
        (folder / "outside.txt").write_text("outside")
        done = damage(folder / rng.choice(("run",) if kind == "run" else ("base", "shards")), rng)
        out = folder / "out"
        name, words = rng.choice(sorted(commands(folder, out, kind).items()))
        before, heard = tree(folder), io.StringIO()
        try:
            with Time(SECONDS), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
                code = main(words)
            after = tree(folder)
            kept = {path: content for path, content in after.items() if path.split("/")[0] != "out"}
            assert kept == before, f"changed: {sorted(set(kept.items()) ^ set(before.items()))[:3]}"
            assert code in (0, MISUSED), f"exit code {code}: {heard.getvalue()[-300:]}"
            assert code == 0 or not out.exists(), "refused, and something is written"
            assert "\x1b" not in heard.getvalue(), "an escape sequence of a file reaches the terminal"
        except BaseException as error:
            error.add_note(f"{name} after: {'; '.join(done)}")
            raise
    return name, code
