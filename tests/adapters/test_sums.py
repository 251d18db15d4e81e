"""What sums of adapters share: the terms of each layer, and what all of them must agree on."""

import operator

import pytest

import loralib as lora
from loralib.adapters import sums
from sample_adapters import UPDATE, whole


def other() -> lora.LoRAUpdate:
    return lora.LoRAUpdate(whole(1, 3), whole(4, 1), 2)


def test_every_layer_comes_once_with_the_updates_that_it_has_and_their_weights():
    b = other()
    terms = sums.terms_by_layer([{"q": UPDATE, "v": UPDATE}, {}, {"k": b, "q": b}], [1, 2, -3.0])
    assert list(terms) == [("q", [(UPDATE, 1), (b, -3)]), ("v", [(UPDATE, 1)]), ("k", [(b, -3)])]


def test_a_weight_is_needed_for_every_adapter():
    with pytest.raises(ValueError, match="zip"):
        list(sums.terms_by_layer([{"q": UPDATE}, {}], [1]))


def test_values_on_which_all_agree_come_once_the_first_ones():
    assert sums.agreed([{"a": 1}, {"b": 2}, {"a": 1.0, "c": 3}], operator.eq) == {"a": 1, "b": 2, "c": 3}
    assert type(sums.agreed([{"a": 1}, {"a": 1.0}], operator.eq)["a"]) is int
    assert sums.agreed([], operator.eq) == {}
    never_equal = float("nan")
    assert sums.agreed([{"a": never_equal}, {"a": never_equal}], operator.eq) == {"a": never_equal}


@pytest.mark.parametrize("held", [[{"a": 1, "b": 2}, {"b": 3}], [{}, {"b": 2}, {}, {"b": 3}]])
def test_a_value_on_which_two_disagree_is_refused_by_name(held):
    with pytest.raises(lora.AlgebraError, match=r"'b' was trained in full in several adapters and differs.*tensors="):
        sums.agreed(held, operator.eq)


def test_only_entries_that_all_have_are_shared():
    assert sums.shared([{"a": "x", "b": "y", "c": "z"}, {"c": "z", "b": "w", "a": "x"}, {"a": "x"}]) == {"a": "x"}
    assert sums.shared([{"a": "x"}]) == {"a": "x"}
    assert sums.shared([{}, {"a": "x"}]) == {}


def test_an_algebra_error_begins_with_the_layer_and_others_pass_as_they_are():
    with pytest.raises(lora.AlgebraError, match=r"^a\.q: it does not go$"), sums.in_layer("a.q"):
        raise lora.AlgebraError("it does not go")
    with pytest.raises(KeyError, match=r"^'it does not go'$"), sums.in_layer("a.q"):
        raise KeyError("it does not go")
    with sums.in_layer("a.q"):
        pass
