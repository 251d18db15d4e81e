"""The table of singular values: aligned, in natural order, and every layer is counted."""

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loralib.analysis.spectra import Spectrum
from loralib.cli.spectra import table


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["blocks", "0", "12", "attention", "to_out", "a" * 30]), min_size=1, max_size=5).map(".".join),
        st.lists(st.floats(0, 1e4), min_size=0, max_size=70).map(lambda values: tuple(sorted(values, reverse=True))),
        min_size=1,
        max_size=30,
    ),
    st.integers(60, 200),
    st.booleans(),
)
def test_the_table_is_aligned_and_counts_every_layer(
    values: dict[str, tuple[float, ...]], columns: int, everything: bool
) -> None:
    spectra = {name: Spectrum(max(1, len(v)), 4, v) for name, v in values.items()}
    lines = table(spectra, lambda name: name[-1], columns, everything)
    header, body = lines[0], lines[1:]
    at = header.index("spectrum")
    rows = [line for line in body if re.match(r"[█▁-▇]+$|zero$", line[at:]) and line[at - 2 : at] == "  "]
    hidden = sum(int(found[1]) for line in body if (found := re.search(r"… and (\d+) more", line)))
    assert len(rows) + hidden == len(spectra)
    assert not (everything and hidden)


def spectra(*names: str, values: tuple[float, ...] | None = (2.0, 1.0), **how: Any) -> dict[str, Spectrum]:
    return {name: Spectrum(**{"r": 2, "lora_alpha": 4.0, "values": values} | how) for name in names}


def kind(name: str) -> str:
    return name.rpartition(".")[2]


def test_layers_of_one_kind_stand_together_in_natural_order_under_what_they_have_in_common() -> None:
    found = spectra(*(f"model.layers.{i}.{name}" for i in (10, 9, 2) for name in ("q", "v")))
    lines = table(found, kind, 100)
    assert [line.split()[0] for line in lines] == [
        "layer",
        "model.layers.*.q",
        "2",
        "9",
        "10",
        "model.layers.*.v",
        "2",
        "9",
        "10",
    ]
    assert lines[1].endswith("(3 layers)")


def test_columns_that_would_say_the_same_of_all_are_left_out() -> None:
    assert table({}, kind, 80) == []
    (header, _) = table(spectra("a"), kind, 80)
    assert header.split() == ["layer", "r", "‖ΔW‖", "99", "%", "spectrum"]
    mixed = spectra("a", lora_alpha=4.0, intruders=1) | spectra("b", lora_alpha=8.0, intruders=0)
    header, *rows = table(mixed, kind, 80)
    assert header.split() == ["layer", "r", "alpha", "‖ΔW‖", "99", "%", "intruders", "spectrum"]
    assert [row.split()[:6] for row in rows] == [["a", "2", "4", "2.236", "2", "1"], ["b", "2", "8", "2.236", "2", "0"]]


def test_what_has_no_picture_is_said_in_words() -> None:
    lines = table(spectra("a", values=None) | spectra("b", values=(0.0, 0.0)), kind, 80)
    assert lines[1].endswith("not finite")
    assert lines[2].endswith("zero")


def test_of_many_layers_some_are_shown_and_the_others_summed_up() -> None:
    found = {f"m.{i}.q": Spectrum(2, 4, (float(i + 1), 0.0)) for i in range(40)}
    lines = table(found, kind, 80)
    assert len(lines) == 1 + 1 + 24 + 1
    assert lines[2].split()[0] == "0"
    assert lines[-2].split()[0] == "39"
    assert re.search(r"… and 16 more: ‖ΔW‖ [\d.]+ to [\d.]+, 99 % in 1 \(--all shows them\)", lines[-1])
    assert len(table(found, kind, 80, everything=True)) == 1 + 1 + 40


def test_long_names_are_cut_to_the_width_and_stay_different() -> None:
    names = [
        f"encoder.very_long_block_name.{i}.attention_output_projection.{part}" for i in range(2) for part in ("query", "dense")
    ]
    lines = table(spectra(*names, values=(1.0,) * 30), lambda name: "all", 60)
    assert max(map(len, lines)) <= 60
    assert len({line.split("  ")[1] for line in lines[2:]}) == 4


def test_names_may_hold_any_character() -> None:
    lines = table(spectra("a\x1b.q", "a\n.q"), kind, 80)
    assert all(line.isprintable() for line in lines)
