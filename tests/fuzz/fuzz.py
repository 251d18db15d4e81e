"""Let readers and commands meet damaged files: `python tests/fuzz/fuzz.py [--files N] [--pairs N] [--folders N] [--guided N]`.

files: mutated adapters of every format. pairs: PEFT's config and tensors that do not belong together. folders: damaged folders
of base models and of runs, which commands read. guided: files made by atheris, which goes where new code is reached.

The process may take no more memory than it has and 64 MiB, so that a reader that believes a file of a few kilobytes when it
speaks of gigabytes is found; commands on folders, which load libraries on the way, may take what they want.
"""

import argparse
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch

sys.path.insert(0, str(Path(__file__).parent))
import folders
import pairs
from mutation import Hang, mutated, refused
from seeds import Files, seeds

SPARE = 64 << 20


def limit_memory(spare: int = SPARE) -> None:
    """Let the process have what it has and `spare` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def checked(
    name: str, files: Files, folder: Path, results: Counter[str], read: Callable[[Files, Path], bool] = refused
) -> None:
    """Read `files` and count what came of it; a finding is told with the files, and ends the process."""
    shutil.rmtree(folder)
    folder.mkdir()
    try:
        results["refused" if read(files, folder) else "read"] += 1
    except (Exception, Hang):  # noqa: BLE001 - whatever comes is what is looked for
        report(f"{name}: {files}")


def report(finding: str) -> NoReturn:
    """Tell of the exception at hand, and end the process."""
    traceback.print_exc()
    print(f"found with {finding}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(1)


def at_random(count: int, seed: int, folder: Path) -> Counter[str]:
    """Read `count` mutated files."""
    rng, results, found = random.Random(seed), Counter[str](), dict(seeds())
    for name, files in found.items():
        assert not refused(files, folder), f"{name} is refused before anything was changed"
        shutil.rmtree(folder)
        folder.mkdir()
    limit_memory()
    for _ in range(count):
        name = rng.choice(sorted(found))
        checked(name, mutated(found[name], rng), folder, results)
    return results


def of_pairs(count: int, seed: int, folder: Path) -> Counter[str]:
    """Read `count` pairs of config and tensors."""
    rng, results = random.Random(seed), Counter[str]()
    for i in range(count):
        checked(f"pair {i} of seed {seed}", pairs.pair(rng), folder, results, pairs.refused)
    return results


def of_folders(count: int, seed: int, folder: Path) -> Counter[str]:
    """Let commands read `count` damaged folders, half of them of runs; how often each did its work and refused it."""
    rng, results = random.Random(seed), Counter[str]()
    pristine = folders.make(folder / "pristine")
    for i in range(count):
        try:
            _, code = folders.tried(pristine, folder / "copy", ("run", "base")[i % 2], rng)
        except (Exception, Hang):  # noqa: BLE001 - as above
            report(f"folder {i} of seed {seed}")
        results["refused" if code else "read"] += 1
    return results


def guided(count: int, folder: Path) -> None:
    """Read `count` files that atheris makes of the same beginnings; ends the process."""
    import atheris

    found = dict(seeds())
    names, results = sorted(found), Counter[str]()
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, name in enumerate(names):
        for j, (_, content) in enumerate(sorted(found[name].items())):
            (corpus / f"{i}-{j}").write_bytes(bytes([i, j]) + content)
    place = folder / "files"
    place.mkdir()

    def one(data: bytes) -> None:
        if len(data) > 2:
            name = names[data[0] % len(names)]
            files = found[name]
            checked(name, files | {sorted(files)[data[1] % len(files)]: data[2:]}, place, results)
            if results.total() == count:
                print(f"guided: {results['read']:,} read, {results['refused']:,} refused", flush=True)

    limit_memory(16 * SPARE)  # atheris needs some itself
    for module in [module for name, module in sys.modules.items() if name.startswith("loralib.formats")]:
        for value in vars(module).values():
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and not isinstance(value, type):
                setattr(module, value.__name__, atheris.instrument_func(value))
    options = [f"-runs={count + count // 10}", "-max_len=8192", "-verbosity=0", "-print_final_stats=0", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], str(corpus), *options], one)
    atheris.Fuzz()


KINDS = {"folders": of_folders, "pairs": of_pairs, "files": at_random}  # the last limits the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in (*KINDS, "guided"):
        parser.add_argument(f"--{kind}", type=int, default=0, help=f"how many {kind} (default: none)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        for kind, work in KINDS.items():
            if count := getattr(given, kind):
                place, began = Path(folder) / kind, time.monotonic()
                place.mkdir()
                with warnings.catch_warnings(action="error" if kind != "folders" else "ignore"):
                    results = work(count, given.seed, place)
                counts = f"{results['read']:,} read, {results['refused']:,} refused"
                print(f"{kind}: {counts}, {time.monotonic() - began:.0f} s", flush=True)
        if given.guided:
            guided(given.guided, Path(folder))


if __name__ == "__main__":
    main()
