"""What an expression from a file may cost: repeated groups and many choices are refused before anything is matched."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import loralib as lora
from loralib import expressions, patterns

HOSTILE = [
    *("(a+)+$", "(a*)*b", "([a-z]+)*x", "(a|a)*b", "(?:a|b|ab){2,}", "(?P<n>a+)+b", "(a+)(?#c)+b", "((a+)?b?)*", "(a{1,9}){9}"),
    *("(?=(a+))+b", "(?x:( a+ )  +b)", "(?x:(a+) #\n+b)", r"(\)a+)+", "([)]a+)+", "(a+){2}", "(a+){1,2}", "(a+)*?b", "(a+)++b"),
    *(
        ".*.*.*.*x",
        "a+a+a+a+b",
        r"\w+\d*.*[a-z]{2,}x",
        "a{0,999}" * 4 + "b",
        "a?" * 30 + "b",
        "(a|a)" * 30 + "b",
        "a*|b*|c*|d*",
    ),
]
HARMLESS = [
    *(
        r".*\.layers\.\d+\.(q|k|v|o)_proj",
        r"^(text_model\.)?encoder\.0",
        "(?:model.)?x",
        r"[*+]{2}\*\+\(\)",
        "a{3}b{1,2}",
        "[)+]",
    ),
    *(
        r"^(?!.*visual).*(?:q_proj|k_proj)",
        r"(?<=layers\.)\d+\.mlp",
        "(?i:query)",
        "a{,}x{a}",
        "(?P<n>a)(?P=n)",
        "(q|v){1}",
        ".*x|y",
    ),
]


def folder(path: Path, entries: dict[str, int], field: str = "rank_pattern", layers: tuple[str, ...] = ("a" * 40,)) -> Path:
    """A PEFT folder with those entries in a field of its configuration."""
    path.mkdir()
    tensors = {
        f"base_model.model.{name}.{part}.weight": torch.ones(shape)
        for name in layers
        for part, shape in (("lora_A", (2, 3)), ("lora_B", (3, 2)))
    }
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a"], field: entries}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", HOSTILE)
def test_a_costly_expression_of_a_stranger_is_refused_by_name(key: str, field: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "adapter", {key: 2}, field)
    with pytest.raises(lora.FormatError) as raised:
        lora.load(path)
    said = f"{path / 'adapter_config.json'}: {field}: {key!r:.80} "
    assert str(raised.value).startswith(said), raised.value
    assert str(raised.value).endswith("; write names, or simpler expressions.") or "neither a name nor" in str(raised.value)


@pytest.mark.parametrize("key", HARMLESS)
def test_expressions_of_the_usual_kinds_are_read(key: str, tmp_path: Path) -> None:
    adapter = lora.load(folder(tmp_path / "adapter", {key: 2}, layers=("layers.1.q_proj", "x")))
    assert set(adapter.layers) == {"layers.1.q_proj", "x"}


def test_expressions_of_a_diffusers_file_are_refused_as_well(tmp_path: Path) -> None:
    def update(r: int) -> lora.LoRAUpdate:
        return lora.LoRAUpdate(torch.ones(r, 3), torch.ones(3, r), 4)

    adapter = lora.Adapter(lora.LoRAConfig(), {"unet.mid.to_q": update(2), "unet.mid.to_k": update(4)})
    lora.save(adapter, tmp_path / "a.safetensors", "diffusers")
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (key,) = [key for key, value in metadata.items() if "rank_pattern" in value]
    said = json.loads(metadata[key])
    said["unet.rank_pattern"] = {"(.+)+x": 2}
    save_file(tensors, tmp_path / "a.safetensors", metadata | {key: json.dumps(said)})
    with pytest.raises(lora.FormatError, match=r"rank_pattern: '\(\.\+\)\+x' repeats a group"):
        lora.load(tmp_path / "a.safetensors")


def test_many_expressions_for_many_names_are_refused_together() -> None:
    table = patterns.Patterns({rf".*{i}.*\d+x": 1 for i in range(500)}, "rank_pattern")
    table.check_cost(["layers.0.q_proj"], "rank_pattern")
    with pytest.raises(
        lora.ConfigError, match=r"rank_pattern: '.*' and those before it may take too long to match with 900 names"
    ):
        table.check_cost([f"model.layers.{i}.self_attn.q_proj" for i in range(900)], "rank_pattern")


def test_a_value_for_each_of_many_layers_is_affordable_in_any_form() -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(800)]
    for form in ("{}", "^{}$", ".*{}", r"{}.*", "(model)?{}"):
        patterns.Patterns({form.format(re.escape(name)): 1 for name in names}).check_cost(names)


ITEMS = st.sampled_from(["a", "b", ".", "[ab]", r"\.", "a|b", "|a"])
TIMES = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{2,}", "*?"])


@given(parts=st.lists(st.tuples(st.booleans(), ITEMS, TIMES), min_size=1, max_size=4), text=st.text("ab.", max_size=5))
def test_the_bound_counts_every_way_to_match(parts: list[tuple[bool, str, str]], text: str) -> None:
    expression = "".join(f"({item})" if grouped else item + times for grouped, item, times in parts)
    bound = expressions.ways(expression, len(text))
    assert bound is not None
    assert bound >= splits(parts, text)


def splits(parts: list[tuple[bool, str, str]], text: str) -> int:
    """In how many ways the items can share out the text; 0 for expressions with alternatives at the top."""
    if any("|" in item and not grouped for grouped, item, _ in parts):
        return 0
    count = 0
    for ends in itertools.combinations_with_replacement(range(len(text) + 1), len(parts) - 1):
        edges = [0, *ends, len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
        texts = [f"({item})" if grouped else item + times for grouped, item, times in parts]
        count += all(re.fullmatch(part, piece) for part, piece in zip(texts, pieces, strict=True))
    return count
