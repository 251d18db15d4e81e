"""Words of a report: the labels of layers."""

from hypothesis import given
from hypothesis import strategies as st

from loralib.recipes.learned.wording import labels

NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1"]), min_size=1, max_size=4).map(".".join), min_size=1, max_size=5, unique=True
)


@given(NAMES)
def test_a_label_in_the_pattern_is_the_name(names: list[str]) -> None:
    pattern, short = labels(names)
    if "*" in pattern:
        before, after = pattern.split("*")
        assert [before + label + after for label in short] == names
    else:
        assert short == names
    assert len(set(short)) == len(names)
