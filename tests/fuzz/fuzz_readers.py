"""Let every reader of adapters read mutated files: `python tests/fuzz/fuzz_readers.py [--files N] [--seed S] [--guided N]`.

The process may take no more memory than it has and 64 MiB, so that a reader that believes a file of a few kilobytes when it
speaks of gigabytes is found. `--guided` files are made by atheris, which goes where new code is reached; the others at random.
"""

import argparse
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parent))
from mutation import Hang, mutated, refused
from seeds import Files, seeds

SPARE = 64 << 20


def limit_memory(spare: int = SPARE) -> None:
    """Let the process have what it has and `spare` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def checked(name: str, files: Files, folder: Path, results: Counter[str]) -> None:
    """Read `files` and count what came of it; a finding is told with the files, and ends the process."""
    for stale in folder.iterdir():
        stale.unlink()
    try:
        results["refused" if refused(files, folder) else "read"] += 1
    except (Exception, Hang):  # noqa: BLE001 - whatever comes is what is looked for
        traceback.print_exc()
        print(f"found with {name}: {files}", file=sys.stderr)
        sys.stderr.flush()
        sys.exit(1)


def at_random(count: int, seed: int, folder: Path) -> Counter[str]:
    """Read `count` mutated files."""
    rng, results, found = random.Random(seed), Counter[str](), dict(seeds())
    for name, files in found.items():
        assert not refused(files, folder), f"{name} is refused before anything was changed"
        for stale in folder.iterdir():
            stale.unlink()
    limit_memory()
    for _ in range(count):
        name = rng.choice(sorted(found))
        checked(name, mutated(found[name], rng), folder, results)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="how many files at random (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", type=int, default=0, help="how many files by atheris (default: none)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        if given.files:
            (Path(folder) / "random").mkdir()
            results = at_random(given.files, given.seed, Path(folder) / "random")
            told = f"{results['read']:,} read, {results['refused']:,} refused"
            print(f"at random: {told}, {time.monotonic() - began:.0f} s", flush=True)
        if given.guided:
            guided(given.guided, Path(folder))


if __name__ == "__main__":
    main()
