"""Parts of pages that are made from the source, and the notebook that is made from a page."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import generated_parts as generated
import page_notebook
from error_examples import EXAMPLES, message_of
from loralib import architectures, cli, errors
from loralib.recipes.options import TrainOptions
from page_blocks import blocks
from peers import library

TUTORIAL = Path(__file__).parents[2] / "docs" / "start" / "tutorial.md"


def test_every_error_class_has_an_example() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and value is not errors.LoRAError}
    assert set(EXAMPLES) == {name for name in classes if issubclass(getattr(errors, name), errors.LoRAError)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_error_example_raises_the_error_that_it_is_for(name: str) -> None:
    assert type(message_of(EXAMPLES[name])).__name__ == name


def test_an_example_that_raises_nothing_is_found() -> None:
    with pytest.raises(AssertionError, match="raises no LoRAError"):
        message_of("lora.LoRAConfig(r=1)")


def test_the_table_of_families_has_every_family_and_every_layer() -> None:
    lines = [line for line in generated.families().splitlines() if line.startswith("| `")]
    rows = {family: line for line in lines for family in line.split(" | ")[0].strip("| ").replace("`", "").split(", ")}
    tables = architectures.ENCODERS | architectures.DECODERS
    assert rows.keys() == tables.keys()
    for family, roles in tables.items():
        assert all(f"`{layer}`" in rows[family] for layers in roles.values() for layer in layers)
    assert "slice 3 of 3 of `attn.c_attn`" in rows["gpt2"]


@pytest.mark.slow
def test_the_help_of_every_command_is_on_its_page() -> None:
    page = generated.commands()
    for command in cli.COMMANDS:
        assert f"### loralib {command} {{ #{command} }}" in page
        assert f"usage: loralib {command}" in page


def test_every_option_of_a_run_is_in_the_table() -> None:
    page = generated.options()
    assert all(f"| `{name}` |" in page for name in (field.name for field in fields(TrainOptions)) if name != "lora")


def test_doctests_of_docstrings_are_code_of_the_site() -> None:
    library("griffe")
    from doctests import as_markdown

    assert as_markdown("One.\n\n>>> 1 + 1\n2\n\nTwo.") == "One.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nTwo."
    assert as_markdown("One.\n\nExample:\n    >>> 1\n    1") == "One.\n\nExamples:\n    >>> 1\n    1"


@pytest.mark.slow
def test_the_tutorial_as_a_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads(page_notebook.from_page(TUTORIAL.read_text(encoding="utf-8")))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert len(code) >= 6
    assert text.startswith("# Tutorial")
    assert "```" not in text
    assert "notebook" not in text
    ran = subprocess.run(
        [sys.executable, "-"], input="\n".join(code), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    shown = [block.code for block in blocks(TUTORIAL.read_text(encoding="utf-8")) if block.kind == "output"]
    assert re.sub(r"[\d.]+%", "%", ran.stdout) == re.sub(r"[\d.]+%", "%", "".join(shown))
    assert (tmp_path / "my-adapter" / "adapter_config.json").is_file()
