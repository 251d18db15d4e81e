"""YAML files from elsewhere: plain values, of a size that the file itself has."""

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file. `yaml.YAMLError` for one that is larger than options are, or that aliases (`*name`) make
    larger than that; `OSError` where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise yaml.YAMLError(f"it is larger than {MOST_BYTES:,} bytes, which no file of options is")
    try:
        text = content.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values; write them out")
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are when every alias is written out; more than any limit for a node that holds itself."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1
        items = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in inner)
    return known[id(node)]
