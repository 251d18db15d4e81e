"""What is written as JSON, every reader of JSON can read."""

import ast
import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import loralib
from loralib.storage.json_text import as_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


def strictly(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def with_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: with_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_none(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


@given(VALUES)
def test_what_is_not_finite_is_null_and_all_else_is_kept(value: Any) -> None:
    assert strictly(as_json(value)) == with_none(value)


@given(st.dictionaries(st.floats() | st.integers(), st.floats(), max_size=3))
def test_a_name_that_is_a_number_is_no_exception(value: Any) -> None:
    assert len(strictly(as_json(value))) <= len(value)


CHECKED = {  # their numbers are checked where they come from; merge.py copies the base model's config.json
    "adapters/digest.py",
    "checkpoints/merge.py",
    "config.py",
    "formats/diffusers.py",
    "formats/diffusers_scaling.py",
    "formats/one_file.py",
    "formats/peft.py",
    "storage/safetensors.py",
}


def test_one_function_writes_json() -> None:
    root = Path(loralib.__file__).parent
    writers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and getattr(node.value, "id", "") == "json"
    }
    assert writers <= CHECKED | {"storage/json_text.py"}
