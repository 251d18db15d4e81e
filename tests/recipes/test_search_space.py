"""What a search chooses from: candidates are drawn without replacement, and none that no run could take."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib.errors import ConfigError
from loralib.recipes.search import Space


@given(st.integers(2, 30), st.integers(0, 5))
def test_the_space_draws_distinct_candidates_after_the_given_one(n: int, seed: int) -> None:
    first = {"r": 8, "lora_alpha": 16.0, "layers": "query,value", "train_head": "all", "learning_rate": 1e-3}
    drawn = Space().draw(n, seed, first)
    assert drawn[0] == first
    assert len(drawn) == n == len({tuple(values.items()) for values in map(dict, drawn) if values}) or n > 540
    assert drawn == Space().draw(n, seed, first)
    assert all(values["lora_alpha"] / values["r"] in (1, 2, 4) for values in drawn)


@pytest.mark.parametrize("values", [{"r": ()}, {"layers": ("query,valeu",)}])
def test_a_space_that_no_run_could_take_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"one value at least|'valeu' is none of query, key"):
        Space(**values)


def test_all_that_there_is_is_drawn_once_and_no_more() -> None:
    space = Space(r=(2, 4), alpha=(1, 2), layers=("value",), train_head=("all",), learning_rate=(0.1, 0.2))
    first = {"r": 2, "lora_alpha": 2.0, "layers": "value", "train_head": "all", "learning_rate": 0.1}
    drawn = space.draw(99, 0, first)
    assert len(drawn) == 2 * 2 * 2
    assert sorted(values["lora_alpha"] for values in drawn) == [2, 2, 4, 4, 4, 4, 8, 8]
    assert len(space.draw(99, 0, {**first, "r": 3})) == 2 * 2 * 2 + 1
    assert space.draw(1, 0, first) == [first]


@pytest.mark.parametrize("name", ["r", "alpha", "layers", "train_head", "learning_rate"])
def test_an_empty_choice_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: the search needs one value at least"):
        Space(**{name: ()})
