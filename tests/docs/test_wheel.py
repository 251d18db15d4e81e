"""The wheel, where only the core's dependencies are installed: README's snippets run, and so do the commands on adapters."""

import os
import re
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from page_blocks import blocks
from peers import library

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow


def ran(*words: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A finished process that sees no module of the tests' environment by PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"COLUMNS": "100"}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}:\n{done.stdout}{done.stderr}"
    return done


def required(package: metadata.Distribution) -> Iterator[metadata.Distribution]:
    """What a package needs without extras, and what that needs, each once."""
    waiting, seen = [(package, {""})], set[str]()
    while waiting:
        wanting, extras = waiting.pop()
        for wanted in map(Requirement, wanting.requires or ()):
            asked = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
            if asked and wanted.name not in seen:
                seen.add(wanted.name)
                waiting.append((metadata.distribution(wanted.name), {"", *wanted.extras}))
                yield waiting[-1][0]


def link(package: metadata.Distribution, site: Path) -> None:
    """Make an installed package importable from another environment."""
    for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        if not (site / name).exists():
            (site / name).symlink_to(str(package.locate_file(name)))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that has the wheel and what its metadata require."""
    library("hatchling")
    folder = tmp_path_factory.mktemp("fresh")
    built = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(built, cwd=ROOT, capture_output=True, check=True)
    venv.create(folder / "env", symlinks=True)
    programs = folder / "env" / "bin"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    ran(sys.executable, "-m", "pip", "--python", programs / "python", "install", *options, *folder.glob("*.whl"), cwd=folder)
    site = Path(
        ran(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    )
    (wheel,) = metadata.distributions(name="loralib", path=[str(site)])
    for package in required(wheel):
        link(package, site)
    return programs


@pytest.fixture(scope="module")
def folder(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the Python blocks of README ran."""
    here = tmp_path_factory.mktemp("readme")
    program = here / "readme.py"
    program.write_text("\n".join(block.code for block in blocks(README) if block.kind in ("python", "setup")), encoding="utf-8")
    ran(environment / "python", "-W", "error", program, cwd=here)
    return here


def lines_that_run() -> Sequence[str]:
    """The commands of README that run."""
    return [line for block in blocks(README) if block.note == "run" for line in block.code.splitlines()]


def test_nothing_but_the_cores_dependencies_is_there(environment: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if u.find_spec(name)))"
    names = ("loralib", "torch", "numpy", "safetensors", "transformers", "peft", "rich", "yaml", "jsonargparse", "pytest")
    assert ran(environment / "python", "-c", code, *names, cwd=tmp_path).stdout.split() == list(names[:4])
    origin = ran(environment / "python", "-c", "import loralib; print(loralib.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(origin).is_relative_to(environment.parent)


def test_the_snippets_of_the_readme_run(folder: Path) -> None:
    assert {"my-adapter", "mine.safetensors", "lora.pt"} <= {path.name for path in folder.iterdir()}


def test_the_commands_of_the_readme_on_adapters_run(environment: Path, folder: Path) -> None:
    commands = [shlex.split(line, comments=True) for line in lines_that_run()]
    assert {words[1] for words in commands} == {"info", "convert", "combine", "merge"}
    for program, *words in commands:
        ran(environment / program, *words, cwd=folder)
    assert {"my-adapter.safetensors", "both", "merged-model"} <= {path.name for path in folder.iterdir()}


def test_help_needs_no_other_package(environment: Path, tmp_path: Path) -> None:
    assert "convert" in ran(environment / "loralib", "--help", cwd=tmp_path).stdout
    assert "--format" in ran(environment / "loralib", "convert", "--help", cwd=tmp_path).stdout


def test_a_command_that_trains_says_what_to_install(environment: Path, tmp_path: Path) -> None:
    done = ran(environment / "loralib", "train", "--model", "m", "--data", "d.tsv", cwd=tmp_path, code=2)
    assert re.search(r"^loralib: .* is missing; .*pip install .*\[train", done.stderr)
    assert len(done.stderr.splitlines()) == 1
