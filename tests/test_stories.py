"""On a real pretrained language model: it is read rightly, and LoRA teaches it a language that it was not trained on."""

import math
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loralib as lora
import stories
from models import same_bits
from peers import data, library

OPENING = "Once upon a time, there was a little girl named Lily."
LONGEST = 64


def references(name: str, count: int) -> list[str]:
    """Some of the different descriptions of restaurants in a file of the E2E data."""
    lines = data("e2e", name).read_text(encoding="utf-8").splitlines()
    texts = sorted({line.rpartition("||")[2].strip() for line in lines})
    return random.Random(0).sample(texts, count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories.save(tmp_path_factory.mktemp("stories"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return library("transformers").AutoTokenizer.from_pretrained(folder)


def pretrained(folder: Path) -> Any:
    return library("transformers").AutoModelForCausalLM.from_pretrained(folder)


def continued(model: Any, prompts: Tensor, tokens: int) -> Tensor:
    """The likeliest next tokens, one after another."""
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, do_sample=False)


# --- the model as it is read ----------------------------------------------------------------------------------------


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of neighbouring features, as a complex number, turned by the angle of its position."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (heads, T, head_width / 2)
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def reference_logits(ids: Tensor) -> Tensor:
    """llama2.c's forward pass of the tokens (T,), in its own layout and with its own tables: (T, vocabulary)."""
    sizes, w = stories.checkpoint()
    T = len(ids)
    x = w["embedding"][ids]
    causal = torch.full((T, T), -math.inf).triu(1)
    for i in range(sizes.layers):
        h = norm(x, w["attention_norm"][i])
        q, k, v = ((h @ w[name][i].T).unflatten(-1, (-1, sizes.head_width)).transpose(0, 1) for name in ("wq", "wk", "wv"))
        q, k = (turned(t, w["cos"][:T], w["sin"][:T]) for t in (q, k))
        k, v = (t.repeat_interleave(sizes.heads // sizes.kv_heads, 0) for t in (k, v))
        weights = (q @ k.mT / sizes.head_width**0.5 + causal).softmax(-1)
        x = x + (weights @ v).transpose(0, 1).flatten(1) @ w["wo"][i].T
        h = norm(x, w["ffn_norm"][i])
        x = x + (F.silu(h @ w["w1"][i].T) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["norm"]) @ w["embedding"].T


def test_the_logits_are_those_of_llama2_c(folder: Path) -> None:
    ids = torch.cat([torch.tensor([1]), torch.randint(3, 512, (199,))])
    with torch.no_grad():
        torch.testing.assert_close(pretrained(folder)(ids[None]).logits[0], reference_logits(ids), rtol=1e-4, atol=1e-4)


def test_the_order_of_rows_matters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "halves", lambda W, head_width: W)
    ids = torch.arange(259, 279)
    with torch.no_grad():
        assert (stories.model()(ids[None]).logits[0] - reference_logits(ids)).abs().max() > 1


def test_it_tells_a_story(folder: Path, tokenizer: Any) -> None:
    (ids,) = continued(pretrained(folder), torch.tensor([[1]]), 40)
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(OPENING)
    opening = tokenizer(OPENING).input_ids
    assert ids[: len(opening)].tolist() == opening


def test_it_is_saved_whole(folder: Path) -> None:
    model, saved = stories.model(), pretrained(folder)
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    assert (saved.config.bos_token_id, saved.config.eos_token_id, saved.config.pad_token_id) == (1, 2, 0)
    tensors = saved.state_dict()
    assert tensors.keys() == model.state_dict().keys()
    assert all(same_bits(tensors[name], tensor) for name, tensor in model.state_dict().items())


# --- its tokenizer --------------------------------------------------------------------------------------------------


def sentencepiece_ids(text: str) -> list[int]:
    """llama2.c's way: characters, or their bytes; then the pair that makes the best-scored token, over and over."""
    scored = stories.pieces()
    ids = {piece: i for i, (piece, _) in enumerate(scored)}
    known = [[c] if c in ids else [f"<0x{byte:02X}>" for byte in c.encode()] for c in "▁" + text.replace(" ", "▁")]
    parts = [part for character in known for part in character]
    while True:
        pairs = [(left + right, i) for i, (left, right) in enumerate(pairwise(parts))]
        found = [(-scored[ids[pair]][1], i) for pair, i in pairs if pair in ids]
        if not found:
            return [1, *(ids[part] for part in parts)]
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


TEXTS = [
    OPENING,
    "Café, naïve & Ünï: 日本 🙂🙃!",
    "  two  spaces ",
    "a line\nand\tanother\r\n",
    " ",
    "<0x41> ~ \\n",
    "£ 20 - £ 25 .",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_the_tokens_are_sentencepieces(tokenizer: Any) -> None:
    for text in [*TEXTS, *references("lora_nlg_valid.txt", 100)]:
        assert tokenizer(text).input_ids == sentencepiece_ids(text)


def test_special_tokens_and_padding(tokenizer: Any) -> None:
    assert len(tokenizer) == 512
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]) == [0, 1, 2, 3, 258]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer("").input_ids == [1]
    short = tokenizer(["a", OPENING], padding=True)
    assert short.keys() == {"input_ids", "attention_mask"}
    assert short.attention_mask[0] == [int(i != 0) for i in short.input_ids[0]]


# --- LoRA on it -----------------------------------------------------------------------------------------------------


def batches(tokenizer: Any, texts: list[str], size: int) -> list[dict[str, Tensor]]:
    """Texts of similar length together, the padding left out of the loss."""
    found = []
    texts = sorted(texts, key=len)
    for start in range(0, len(texts), size):
        some = tokenizer(texts[start : start + size], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        labels = some["input_ids"].masked_fill(some["attention_mask"] == 0, -100)
        found.append({**some, "labels": labels})
    return found


@torch.no_grad()
def loss_on(model: nn.Module, some: list[dict[str, Tensor]]) -> float:
    """Nats a token."""
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in some]
    losses = [float(model(**batch).loss) for batch in some]
    return sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)


@pytest.fixture(scope="module")
def taught(folder: Path, tokenizer: Any) -> SimpleNamespace:
    """The model after a short training on restaurants; its tensors, and its loss on other descriptions before and after."""
    torch.manual_seed(0)
    held_out = batches(tokenizer, references("lora_nlg_valid.txt", 96), 32)
    training = batches(tokenizer, references("lora_nlg_train.txt", 320), 8)
    model = pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = loss_on(model, held_out)
    lora.inject(model, lora.LoRAConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    lora.mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.0)
    for epoch in range(2):
        for batch in random.Random(epoch).sample(training, len(training)):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return SimpleNamespace(model=model, tensors=tensors, held_out=held_out, before=before, after=loss_on(model, held_out))


def test_it_learns_a_language_that_it_was_not_trained_on(taught: SimpleNamespace) -> None:
    trained = sum(p.numel() for p in taught.model.parameters() if p.requires_grad)
    assert trained == 5 * 8 * ((64 + 64) + (64 + 32))
    assert taught.after < taught.before - 1.0


def test_no_bit_of_the_model_itself_changes(taught: SimpleNamespace) -> None:
    after = taught.model.state_dict()
    assert all(same_bits(after[name], tensor) for name, tensor in taught.tensors.items())
    assert after.keys() - taught.tensors.keys() == {name for name in after if ".lora_" in name}
    with lora.disabled(taught.model):
        assert loss_on(taught.model, taught.held_out) == taught.before


def test_the_saved_adapter_teaches_another_copy(taught: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    lora.save(lora.extract(taught.model), tmp_path)
    fresh = pretrained(folder)
    lora.attach(fresh, lora.load(tmp_path))
    assert loss_on(fresh, taught.held_out) == taught.after
    lora.eject(fresh)
    assert loss_on(fresh, taught.held_out) == taught.before


def test_peft_reads_the_saved_adapter(taught: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    peft = library("peft")
    lora.save(lora.extract(taught.model), tmp_path)
    theirs = peft.PeftModel.from_pretrained(pretrained(folder), tmp_path)
    assert loss_on(theirs, taught.held_out) == pytest.approx(taught.after, abs=1e-4)


def test_merged_and_unmerged_it_says_the_same(taught: SimpleNamespace, folder: Path, tokenizer: Any) -> None:
    prompts = torch.tensor([tokenizer(f"{name} is a").input_ids for name in ("The Mill", "The Wall")])
    apart = continued(taught.model, prompts, 24)
    with lora.merged(taught.model):
        assert loss_on(taught.model, taught.held_out) == pytest.approx(taught.after, abs=1e-4)
        assert continued(taught.model, prompts, 24).tolist() == apart.tolist()
    assert continued(taught.model, prompts, 24).tolist() == apart.tolist()
    assert apart.tolist() != continued(pretrained(folder), prompts, 24).tolist()
