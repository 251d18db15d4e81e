"""The commands on files of adapters need torch and safetensors only, and are quick to help."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import WORDS
from loralib.cli import ADAPTERS, ANALYSES

# fmt: off
ABSENT = {
    "accelerate", "datasets", "diffusers", "huggingface_hub", "jsonargparse", "matplotlib", "peft", "rich", "sklearn",
    "tokenizers", "transformers", "yaml",
}
# fmt: on
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(ABSENT)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from loralib.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without(words: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """What comes of words where none of the packages in `ABSENT` can be imported."""
    command = [sys.executable, "-W", "error", "-c", WITHOUT, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_each_command_has_its_words() -> None:
    assert WORDS.keys() == ADAPTERS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", ADAPTERS)
def test_a_command_needs_no_more_than_torch_and_safetensors(command: str, place: Path) -> None:
    done = without([command, *WORDS[command]], place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert command == "info" or any(place.glob("out*"))


def test_what_is_absent_is_absent(tmp_path: Path) -> None:
    done = without(["train", "--model", "x", "--task", "sst2"], tmp_path)
    assert done.returncode == 2
    assert "is missing" in done.stderr


@pytest.mark.slow
def test_an_analysis_says_what_to_install(place: Path) -> None:
    done = without(["analyze", "one", "-o", "out"], place)
    assert done.returncode == 2
    assert re.fullmatch(r"loralib: the package that provides '\w+' is missing; .*plot.*\n", done.stderr)
    assert not any(place.glob("out*"))


@pytest.mark.parametrize("command", [*ADAPTERS, *ANALYSES])
def test_the_help_of_a_command_loads_neither_torch_nor_numpy(command: str) -> None:
    script = (
        "import sys\nfrom loralib.cli import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        f"assert not {{'torch', 'numpy', 'safetensors', *{sorted(ABSENT)}}} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"usage: loralib {command}")


def test_help_is_shown_where_there_is_nothing_but_ascii() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for command in [*ADAPTERS, *ANALYSES]:
        words = [sys.executable, "-m", "loralib", command, "--help"]
        assert subprocess.run(words, capture_output=True, env=environment, check=True).stdout.isascii()
