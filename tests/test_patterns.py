"""Names of layers: exact parts, whole expressions, and PEFT's reading of rank and alpha patterns."""

import dataclasses
import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loralib as lora
from loralib import patterns
from peers import library

PARTS = st.text(string.ascii_lowercase[:3] + "_.0+(", min_size=1, max_size=6).filter(
    lambda p: ".." not in p and p.strip(".") == p
)
NAMES = ["encoder.0.query", "encoder.0.key", "encoder.1.query", "encoder.1.key", "my_query", "query", "head"]


def test_a_name_matches_itself_and_what_ends_with_it_at_a_dot():
    found = patterns.match(NAMES, ["query"], "target_modules", "Model")
    assert found == ["encoder.0.query", "encoder.1.query", "query"]
    assert patterns.match(NAMES, ["0.query", "head"], "target_modules", "Model") == ["encoder.0.query", "head"]


@given(names=st.lists(PARTS, unique=True, min_size=1), entry=PARTS)
def test_names_in_a_list_are_no_expressions(names, entry):
    expected = [name for name in names if name == entry or name.endswith("." + entry)]
    if expected:
        assert patterns.match(names, [entry], "target_modules", "Model") == expected
    else:
        with pytest.raises(lora.TargetError, match="matches no layer of Model"):
            patterns.match(names, [entry], "target_modules", "Model")


def test_an_expression_must_match_the_whole_name():
    assert patterns.match(NAMES, r"encoder\.\d\.query", "target_modules", "Model") == ["encoder.0.query", "encoder.1.query"]
    with pytest.raises(lora.TargetError, match="matches the whole name of no layer of Model"):
        patterns.match(NAMES, "encoder", "target_modules", "Model")


def test_every_entry_of_a_list_must_match():
    with pytest.raises(lora.TargetError, match=r"'keys' matches no layer of Model. Nearest names: key \(2 layers\)"):
        patterns.match(NAMES, ["query", "keys"], "target_modules", "Model")


def test_the_nearest_names_have_as_many_parts_as_the_one_that_was_given():
    assert patterns.nearest("0.qurey", NAMES).startswith("0.query (1 layer)")
    assert patterns.nearest("zzz", []) == "none"
    assert "query (3 layers)" in patterns.nearest("zzzzzzzz", NAMES)


@given(name=PARTS, other=PARTS)
def test_an_exact_key_fits_its_name_alone(name, other):
    key = patterns.exactly(name)
    assert patterns.lookup({key: 1}, name, 0) == 1
    assert patterns.lookup({key: 1}, other, 0) == (name == other)
    assert patterns.lookup({key: 1}, f"{other}.{name}", 0) == 0


@pytest.mark.parametrize(
    "keys",
    [["query"], ["0.query", "query"], ["query", "0.query"], [r"encoder\.\d\.key"], ["^query"], [r"encoder.*"], ["que"], ["y"]],
)
def test_rank_and_alpha_patterns_are_read_as_peft_reads_them(keys):
    get_pattern_key = library("peft.utils.other").get_pattern_key
    table = {key: i for i, key in enumerate(keys)}
    for name in NAMES:
        assert patterns.lookup(table, name, None) == table.get(get_pattern_key(keys, name))


NAME_KEYS = ["query", "0.query", "a.b", "b.a", "a", "b", "a_b", "aab", "c.a.b", "0"]
EXPRESSIONS = [r"encoder\.\d\.key", "^query", ".*", "^", "^a.b"]
ESCAPED = st.builds(
    lambda start, name, end: start + re.escape(name) + end, st.sampled_from(["", "^"]), PARTS, st.sampled_from(["", "$"])
)
KEYS = st.one_of(PARTS.map(patterns.exactly), ESCAPED, st.sampled_from(NAME_KEYS + EXPRESSIONS))
OTHER_NAMES = st.one_of(PARTS, st.text("ab._\n", max_size=6), st.sampled_from([*NAMES, ""]))


@settings(max_examples=1000)
@given(keys=st.lists(KEYS, unique=True), name=OTHER_NAMES)
def test_exact_keys_are_found_where_a_walk_through_all_entries_finds_them(keys, name):
    table = patterns.Patterns({key: i for i, key in enumerate(keys)})
    expected = next((i for i, key in enumerate(keys) if re.fullmatch(rf"(.*\.)?({key})", name)), None)
    assert table.of(name, None) == expected
    assert table.unused([name]) == [key for key in keys if not re.fullmatch(rf"(.*\.)?({key})", name)]


def test_exact_keys_need_no_regular_expression(monkeypatch):
    names = [f"layers.{i}.q_proj" for i in range(100)]
    monkeypatch.setattr(re, "compile", None)
    for keys in (names, *([form.format(re.escape(name)) for name in names] for form in ("{}", "^{}", "{}$", "^{}$"))):
        table = patterns.Patterns({key: i for i, key in enumerate(keys)})
        assert [table.of(name, None) for name in names] == list(range(100))
        assert table.unused(names[1:]) == [keys[0]]


def test_an_expression_is_compiled_once_however_many_layers_are_looked_up(monkeypatch):
    keys = [rf"once\.{i}\..*" for i in range(50)]
    compiled = Counter()
    compile_ = re.compile
    monkeypatch.setattr(re, "compile", lambda text, flags=0: compiled.update([text]) or compile_(text, flags))
    config = lora.LoRAConfig(rank_pattern=dict.fromkeys(keys, 4), alpha_pattern=dict.fromkeys(keys, 4))
    for pattern in (config.rank_pattern, dataclasses.replace(config, r=2).alpha_pattern):
        assert [patterns.lookup(pattern, f"once.{i}.q", 8) for i in range(60)] == [4] * 50 + [8] * 10
    assert max(compiled.values()) == 1


def test_patterns_are_mappings():
    entries = {"query": 1, patterns.exactly("key"): 2}
    table = patterns.Patterns(entries)
    assert table == entries == dict(table)
    assert (len(table), list(table), repr(table), table["query"]) == (2, list(entries), repr(entries), 1)
    with pytest.raises(lora.ConfigError, match=r"rank_pattern: '\(' is neither a name nor a regular expression"):
        patterns.Patterns({"(": 1}, "rank_pattern")


def test_a_rank_for_no_adapted_layer_is_refused():
    patterns.check_lookup({"query": 1}, NAMES, "rank_pattern")
    with pytest.raises(lora.TargetError, match=r"rank_pattern: 'quarry' fits none .* query \(3 layers\)"):
        patterns.check_lookup({"quarry": 1}, NAMES, "rank_pattern")


def test_what_lies_in_a_module_lies_after_a_dot():
    assert patterns.within("head", ["head"])
    assert patterns.within("head.weight", ["body", "head"])
    assert not patterns.within("header.weight", ["head"])
