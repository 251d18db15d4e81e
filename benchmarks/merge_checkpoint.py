"""`merge_checkpoint` against copying: time and peak memory of merging an adapter into a bfloat16 checkpoint of two gigabytes.

    python -m benchmarks.merge_checkpoint [--layers 21] [--rounds 9] [--record]

The checkpoint is Llama-shaped and made on the spot, one file; all its linear layers but the output are adapted, with r = 16. A
round copies the file (`shutil.copyfile` and fsync) and merges (fsync included), one after the other, each with the disk at rest
before. Peak memory is that of a process of its own, which imports the library, loads the adapter and merges.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

import loralib as lora
from benchmarks.provenance import provenance, write_rows

WIDTH, KEYS, INNER, VOCABULARY, RANK = 2048, 512, 5632, 32_000, 16
LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
ALLOWED = 300e6  # bytes, on top of one and a half times the largest tensor in float32


def make(folder: Path, layers: int, scale: int = 1) -> None:
    """Write the checkpoint and the adapter. scale: divides all widths, for a look at whether this runs."""
    torch.manual_seed(0)
    shapes = {name: (k // scale, d // scale) for name, (k, d) in LINEAR.items()}
    tensors = {name: torch.empty(VOCABULARY // scale, WIDTH // scale) for name in ("model.embed_tokens", "lm_head")}
    tensors |= {f"model.layers.{i}.{name}": torch.empty(shape) for i in range(layers) for name, shape in shapes.items()}
    weights = {f"{name}.weight": t.normal_(std=0.02).bfloat16() for name, t in tensors.items()}
    (folder / "base").mkdir()
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    updates = {}
    for name, t in tensors.items():
        if name.startswith("model.layers"):
            A, B = torch.randn(RANK, t.shape[1]), 0.01 * torch.randn(len(t), RANK)
            updates[name] = lora.LoRAUpdate(A, B, lora_alpha=2 * RANK)
    lora.save(lora.Adapter(lora.LoRAConfig(), updates), folder / "adapter")


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, begun with nothing left to write to the disk."""
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy(source: Path, target: Path) -> None:
    """Copy a file to the disk."""
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def merge(folder: Path) -> None:
    """Merge, as a user would."""
    lora.merge_checkpoint(folder / "base", lora.load(folder / "adapter"), folder / "out")


def peak_bytes(folder: Path) -> int:
    """The largest resident size of a process that merges; Linux's own record, since `getrusage` passes on the parent's."""
    code = (
        "import pathlib, sys; from benchmarks.merge_checkpoint import merge; merge(pathlib.Path(sys.argv[1]));"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    shutil.rmtree(folder / "out")
    return 1024 * int(run.stdout)


def measured(layers: int, rounds: int, scale: int = 1) -> dict[str, Any]:
    """One row of figures."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, layers, scale)
        source = folder / "base" / "model.safetensors"
        size, peak = source.stat().st_size, peak_bytes(folder)
        pairs = []
        for _ in range(rounds):
            copying = seconds(lambda: copy(source, folder / "copy"))
            (folder / "copy").unlink()
            merging = seconds(lambda: merge(folder))
            shutil.rmtree(folder / "out")
            pairs.append((copying, merging))
    ratios = sorted(merging / copying for copying, merging in pairs)
    fifth = len(ratios) // 5
    largest = 4 * VOCABULARY * WIDTH // scale**2
    return {
        "bytes": size,
        "layers": layers * len(LINEAR),
        "r": RANK,
        "copy_seconds": round(statistics.median(copying for copying, _ in pairs), 3),
        "merge_seconds": round(statistics.median(merging for _, merging in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_20": round(ratios[fifth], 3),
        "ratio_80": round(ratios[-1 - fifth], 3),
        "rounds": rounds,
        "peak_bytes": peak,
        "allowed_bytes": int(1.5 * largest + ALLOWED),
        "threads": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.merge_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--layers", type=int, default=21, help="blocks of the model (default: 21, 2.2 GB)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="write results/merge_checkpoint.csv")
    given = parser.parse_args()
    row = measured(given.layers, given.rounds)
    print(f"{row['bytes'] / 1e9:.2f} GB, {row['layers']} layers of rank {RANK}, {given.rounds} rounds")
    print(f"copying {row['copy_seconds']} s, merging {row['merge_seconds']} s (medians)")
    print(f"merging / copying: {row['ratio']} ({row['ratio_20']}-{row['ratio_80']}; goal: under 1.5)")
    print(f"peak memory: {row['peak_bytes'] / 1e6:.0f} MB (goal: under {row['allowed_bytes'] / 1e6:.0f} MB)")
    if given.record:
        print(f"wrote {write_rows('merge_checkpoint', [row], provenance('cpu'))}")


if __name__ == "__main__":
    main()
