"""JSON as the standard has it: without NaN and Infinity, which most readers refuse."""

import json
import math
from typing import Any


def as_json(value: Any, **style: Any) -> str:
    """`value` as JSON text; a number that is NaN or infinite is written as null. style: as `json.dumps`.

    >>> as_json({"loss": 0.5, "norms": [1.0, float("inf")]})
    '{"loss": 0.5, "norms": [1.0, null]}'
    """
    return json.dumps(finite(value), allow_nan=False, **style)


def finite(value: Any) -> Any:
    """The value with None for every number in it that is NaN or infinite."""
    if isinstance(value, dict):
        return {name if isinstance(name, str) else finite(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
