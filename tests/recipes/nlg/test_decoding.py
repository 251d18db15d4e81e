"""Texts are the ones that plain searches find, however they are batched, and end where they should."""

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import loralib as lora
from loralib.errors import ConfigError, DataError
from loralib.recipes.nlg.decoding import decode
from loralib.recipes.nlg.prompts import PaperForm
from loralib.recipes.presets.nlg import Decoding
from models import randomize
from recipes.nlg.conftest import END, MEALS, meal

GREEDY = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=12)


def words_tokenizer(*words: str) -> Any:
    """A tokenizer whose tokens are `END` and the words, which stand apart by single spaces."""
    vocabulary = {word: i for i, word in enumerate((END, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, unk_token=END, pad_token=END)


def random_gpt2(vocabulary: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, **ends)).eval()


def markov(tokenizer: Any, follows: dict[str, dict[str, float]]) -> Any:
    """A GPT-2 whose next token depends on the last one alone: its logits are what `follows` says, -30 where nothing.

    Its blocks add nothing; its features tell the tokens apart, with one more that is always on."""
    V = len(tokenizer)
    config = GPT2Config(vocab_size=V, n_positions=64, n_embd=V + 1, n_layer=1, n_head=1, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).eval()
    ids = tokenizer.get_vocab()
    table = torch.full((V, V), -30.0)
    for word, nexts in follows.items():
        for after, score in nexts.items():
            table[ids[word], ids[after]] = score
    features = torch.cat([torch.eye(V), torch.ones(V, 1)], 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wte.weight.copy_(features)
        model.transformer.ln_f.weight.fill_(1.0)
        h = torch.nn.functional.layer_norm(features, (V + 1,))
        model.lm_head.weight.copy_(torch.linalg.lstsq(h, table).solution.T)
        torch.testing.assert_close(model(torch.arange(V)[:, None]).logits[:, 0], table, rtol=0, atol=1e-3)
    return model


LogProbabilities = Callable[[list[int]], list[float]]


def next_token(model: Any) -> LogProbabilities:
    """log p of the token after some ids, by the whole forward pass."""

    @functools.cache
    @torch.no_grad()
    def log_probabilities(*ids: int) -> list[float]:
        found: list[float] = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).tolist()
        return found

    return lambda ids: log_probabilities(*ids)


def prompt_of(tokenizer: Any, context: str) -> list[int]:
    return [*tokenizer.encode(context), tokenizer.eos_token_id]


def as_text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id]).strip()


def repeats(ids: Sequence[int], n: int) -> bool:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) < len(grams)


def greedy_search(log_p: LogProbabilities, prompt: list[int], ends: set[int], most: int) -> list[int]:
    found: list[int] = []
    while len(found) < most:
        scores = log_p(prompt + found)
        token = scores.index(max(scores))
        if token in ends:
            break
        found.append(token)
    return found


def beam_search(log_p: LogProbabilities, prompt: list[int], how: Decoding) -> list[int]:
    """The best text (without its end, token 0) of a search with `how.beams` beams, in plain lists; it stops when the best
    text that goes on has a lower score than all of as many finished ones."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for length in range(1, how.max_new_tokens + 1):
        going_on = [(s + p, [*ids, v]) for s, ids in live for v, p in enumerate(log_p(prompt + ids))]
        allowed = [pair for pair in going_on if not (how.no_repeat_ngram and repeats(pair[1], how.no_repeat_ngram))]
        best = sorted(allowed, reverse=True)
        last = length == how.max_new_tokens
        done += [(s / length**how.length_penalty, ids) for s, ids in best[: how.beams] if last or ids[-1] == 0]
        done = sorted(done, reverse=True)[: how.beams]
        live = [pair for pair in best if pair[1][-1] != 0][: how.beams]
        if not live or (len(done) == how.beams and live[0][0] / length**how.length_penalty <= done[-1][0]):
            break
    return [i for i in max(done)[1] if i != 0]


# --- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_takes_the_likeliest_token_each_time(gpt2: Path, seed: int) -> None:
    tokenizer = words_tokenizer(*"abcdefgh")
    model = random_gpt2(len(tokenizer), seed)
    contexts = ["a", "b c d", "h h e f g a"]
    expected = [greedy_search(next_token(model), prompt_of(tokenizer, context), {0}, 12) for context in contexts]
    assert decode(model, PaperForm(tokenizer), contexts, GREEDY) == [as_text(tokenizer, ids) for ids in expected]
    assert any(expected)


# --- beams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_penalty", [0.0, 0.8, 0.9, 2.0])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_beams_that_cover_everything_find_the_best_text_of_all(length: int, length_penalty: float) -> None:
    tokenizer = words_tokenizer(*"abcd")
    how = Decoding(beams=64, length_penalty=length_penalty, no_repeat_ngram=0, max_new_tokens=length)
    for seed in range(4):
        model = random_gpt2(len(tokenizer), seed)
        log_p, prompt = next_token(model), prompt_of(tokenizer, "c a")
        scores = {}
        for n in range(1, length + 1):
            for ids in itertools.product(range(5), repeat=n):
                if 0 not in ids[:-1] and (ids[-1] == 0 or n == length):
                    log_ps = [log_p(prompt + list(ids[:i]))[token] for i, token in enumerate(ids)]
                    scores[ids] = sum(log_ps) / n**length_penalty
        best = max(scores, key=lambda ids: scores[ids])
        assert decode(model, PaperForm(tokenizer), ["c a"], how) == [as_text(tokenizer, best)]


@given(
    seed=st.integers(0, 99),
    beams=st.integers(2, 5),
    length_penalty=st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0, 2.0, -1.0]),
    no_repeat_ngram=st.sampled_from([0, 2, 3, 4]),
    max_new_tokens=st.integers(1, 9),
)
def test_beam_search_is_the_plain_one(
    seed: int, beams: int, length_penalty: float, no_repeat_ngram: int, max_new_tokens: int
) -> None:
    tokenizer = words_tokenizer(*"abcdef")
    model = random_gpt2(len(tokenizer), seed)
    how = Decoding(beams, length_penalty, no_repeat_ngram, max_new_tokens)
    contexts = ["a", "b c d a e"]
    expected = [beam_search(next_token(model), prompt_of(tokenizer, context), how) for context in contexts]
    assert decode(model, PaperForm(tokenizer), contexts, how) == [as_text(tokenizer, ids) for ids in expected]


@pytest.mark.parametrize(("length_penalty", "text"), [(0.0, "a"), (0.6, "a"), (0.9, "b c d")])
def test_the_length_of_a_score_counts_the_end(length_penalty: float, text: str) -> None:
    """log ½ / 2^p of "a" is above log 0.3 / 4^p of "b c d" up to p = 0.797; if ends did not count, up to p = 0.503."""
    tokenizer = words_tokenizer(*"abcde")
    half, most, rest = math.log(0.5), math.log(0.6), math.log(0.4)
    follows = {END: {"a": half, "b": half}, "a": {END: 0.0}, "b": {"c": 0.0}, "c": {"d": most, "e": rest}}
    model = markov(tokenizer, follows | {"d": {END: 0.0}, "e": {END: 0.0}})
    assert decode(model, PaperForm(tokenizer), ["c"], Decoding(4, length_penalty, 0, 8)) == [text]


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [GREEDY, Decoding(beams=3, max_new_tokens=10)], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_texts_do_not_depend_on_what_is_decoded_beside(
    kind: str, how: Decoding, gpt2: Path, llama: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    rng = random.Random(0)
    contexts = [" | ".join(meal(*both)[0] for both in rng.sample(MEALS, rng.choice([1, 1, 2]))) for _ in range(7)]
    alone = [decode(model, PaperForm(tokenizer), [context], how)[0] for context in contexts]
    assert len(set(alone)) > 3
    for batch_size in (2, 4, 7):
        assert decode(model, PaperForm(tokenizer), contexts, how, batch_size) == alone
    assert decode(model, PaperForm(tokenizer), contexts[::-1], how, 3) == alone[::-1]


def test_batches_are_told_the_longest_inputs_first(gpt2: Path) -> None:
    tokenizer = words_tokenizer(*"abcdefgh")
    contexts = ["a", "a b c", "b", "c d e f", "d e", "g h a b c"]
    heard: list[dict[int, str]] = []
    texts = decode(random_gpt2(len(tokenizer)), PaperForm(tokenizer), contexts, GREEDY, 2, heard.append)
    assert [set(batch) for batch in heard] == [{5, 3}, {1, 4}, {0, 2}]
    assert [text for _, text in sorted(item for batch in heard for item in batch.items())] == texts
    assert decode(random_gpt2(len(tokenizer)), PaperForm(tokenizer), [], GREEDY) == []


# --- n-grams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_no_n_gram_comes_twice_in_a_text(n: int, beams: int) -> None:
    tokenizer = words_tokenizer(*"abc")
    model = markov(tokenizer, {END: {"a": 0.0}, "a": {"b": 0.0, "a": -1.0}, "b": {"a": 0.0, "c": -1.0}, "c": {"a": 0.0}})
    texts = {m: decode(model, PaperForm(tokenizer), ["c"], Decoding(beams, 0.9, m, 14))[0].split() for m in (0, n)}
    assert repeats(texts[0], n)
    assert texts[n]
    assert not repeats(texts[n], n)


@pytest.mark.parametrize("beams", [1, 3])
def test_n_grams_of_the_input_may_be_copied(beams: int) -> None:
    tokenizer = words_tokenizer(*"abcde")
    chain = {END: {"a": 0.0}, "a": {"b": 0.0}, "b": {"c": 0.0}, "c": {"d": 0.0}, "d": {END: 0.0}, "e": {"e": 0.0}}
    model = markov(tokenizer, chain)
    how = Decoding(beams, 0.9, 2, 8)
    assert decode(model, PaperForm(tokenizer), ["a b c d", "e a b"], how) == ["a b c d", "a b c d"]
    ids = torch.tensor([prompt_of(tokenizer, "a b c d")])
    theirs = GenerationConfig(max_new_tokens=8, num_beams=beams, no_repeat_ngram_size=2, eos_token_id=0, pad_token_id=0)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=theirs)
    assert not as_text(tokenizer, found[0, ids.shape[1] :].tolist()).startswith("a b")


# --- where texts end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("end", [END, "\n", "\n\n", "x\ny"])
def test_a_text_ends_with_the_end_of_text_or_a_line_break(end: str, beams: int) -> None:
    tokenizer = words_tokenizer("a", "b", "c", "\n", "\n\n", "x\ny")
    model = markov(tokenizer, {END: {"a": 0.0}, "a": {"b": 0.0}, "b": {end: 0.0}, "\n": {"c": 0.0}, "\n\n": {"c": 0.0}})
    expected = "a b x" if end == "x\ny" else "a b"
    assert decode(model, PaperForm(tokenizer), ["c"], Decoding(beams, 0.9, 0, 6)) == [expected]


def test_a_text_may_end_at_once() -> None:
    tokenizer = words_tokenizer("a", "b")
    model = markov(tokenizer, {END: {END: 0.0}})
    assert decode(model, PaperForm(tokenizer), ["a", "b"], GREEDY) == ["", ""]
    assert decode(model, PaperForm(tokenizer), ["a", "b"], Decoding(beams=2, max_new_tokens=3)) == ["", ""]


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_that_does_not_end_is_cut(most: int, beams: int) -> None:
    tokenizer = words_tokenizer("a", "b")
    model = markov(tokenizer, {END: {"a": 0.0}, "a": {"a": 0.0, "b": -5.0}})
    assert decode(model, PaperForm(tokenizer), ["b"], Decoding(beams, 0.9, 0, most)) == [" ".join("a" * most)]


def test_an_input_that_ends_with_the_end_of_text_has_one_end(gpt2: Path) -> None:
    tokenizer = words_tokenizer(*"abcdefgh")
    model = random_gpt2(len(tokenizer), 1)
    form = PaperForm(tokenizer)
    assert decode(model, form, [f"a b {END}"], GREEDY) == decode(model, form, ["a b"], GREEDY) != [""]


# --- rooms and words ------------------------------------------------------------------------------------------------


def test_an_input_without_room_for_its_text_is_refused_before_anything_is_decoded(gpt2: Path) -> None:
    tokenizer = words_tokenizer(*"ab")
    model = random_gpt2(len(tokenizer))
    fits = " ".join("a" * (64 - 12 - 1))
    heard: list[dict[int, str]] = []
    assert len(decode(model, PaperForm(tokenizer), [fits], GREEDY, 1, heard.append)) == len(heard) == 1
    with pytest.raises(DataError, match=r"'a a a.*' has 53 tokens, and with 12 new ones it exceeds the 64 that the model"):
        decode(model, PaperForm(tokenizer), ["b", f"{fits} a"], GREEDY, 1, heard.append)
    assert len(heard) == 1


@pytest.mark.parametrize("values", [{"beams": 0}, {"no_repeat_ngram": -1}, {"max_new_tokens": 0}])
def test_decoding_that_cannot_work_is_refused(values: dict[str, int]) -> None:
    (name, value), *_ = values.items()
    with pytest.raises(ConfigError, match=f"^{name}={value}: must be at least"):
        Decoding(**values)  # type: ignore[arg-type]


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [GREEDY, Decoding(beams=3, max_new_tokens=10)], ids=["greedy", "beams"])
def test_merged_and_unmerged_models_write_the_same(how: Decoding) -> None:
    tokenizer = words_tokenizer(*"abcdefgh")
    model = random_gpt2(len(tokenizer))
    plain = decode(model, PaperForm(tokenizer), ["a b", "c"], how)
    lora.inject(
        model, lora.LoRAConfig(r=2, lora_alpha=2, target_modules=["c_attn"], enable_lora={"c_attn": (True, False, True)})
    )
    randomize(model)
    unmerged = decode(model, PaperForm(tokenizer), ["a b", "c"], how)
    lora.merge(model)
    assert decode(model, PaperForm(tokenizer), ["a b", "c"], how) == unmerged != plain


@pytest.mark.parametrize("how", [GREEDY, Decoding(3, 0.9, 3, 8)], ids=["greedy", "beams"])
@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [1, 2, 3]},
        {"forced_eos_token_id": 3},
        {"num_return_sequences": 2},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_the_model_came_with_about_generating_does_not_act(values: dict[str, Any], how: Decoding) -> None:
    tokenizer = words_tokenizer(*"abcdefgh")
    contexts = ["a b", "c", "d e f", "g", "h a"]
    model = random_gpt2(len(tokenizer))
    expected = decode(model, PaperForm(tokenizer), contexts, how)
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    assert decode(model, PaperForm(tokenizer), contexts, how) == expected
