"""A real pretrained Llama of 260 K parameters and its tokenizer, read from llama2.c's files into Hugging Face's classes.

llama2.c turns neighbouring features, transformers feature i and feature i + width / 2 of each head, so the rows of W_q and
W_k are put into another order. llama2.c ends a story with `<s>`, and never says `</s>`.
"""

import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peers import data, library

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
FIRST_WORD_PIECE = 259  # after the three above and the 256 bytes


class Sizes(NamedTuple):
    """The header of a checkpoint."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What follows the header, in order: vectors and matrices (out, in), those of all layers stacked."""
        d, h, n, kv, half = self.width, self.hidden, self.layers, self.kv_heads * self.head_width, self.head_width // 2
        attention = {"attention_norm": (n, d), "wq": (n, d, d), "wk": (n, kv, d), "wv": (n, kv, d), "wo": (n, d, d)}
        mlp = {"ffn_norm": (n, d), "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d)}
        rope = {"cos": (self.length, half), "sin": (self.length, half)}
        return {"embedding": (self.vocabulary, d), **attention, **mlp, "norm": (d,), **rope}


def checkpoint() -> tuple[Sizes, dict[str, Tensor]]:
    """The tensors of the file as they are, by llama2.c's names."""
    content = bytearray(data("stories260K", "stories260K.bin").read_bytes())
    sizes = Sizes(*struct.unpack_from("<7i", content))
    shapes = sizes.shapes()
    parts = torch.frombuffer(content, dtype=torch.float32, offset=28).split([prod(shape) for shape in shapes.values()])
    return sizes, {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def halves(W: Tensor, head_width: int) -> Tensor:
    """The rows (heads · head_width, ...) with each head's even ones before its odd ones."""
    pairs: Tensor = W.unflatten(0, (-1, head_width // 2, 2))  # (heads, head_width / 2, 2, ...)
    return pairs.transpose(1, 2).flatten(0, 2)


def state_dict(sizes: Sizes, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by transformers' names, with its order of rows."""
    names = {
        "attention_norm": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    }
    E = tensors["embedding"]
    state = {"model.embed_tokens.weight": E, "lm_head.weight": E, "model.norm.weight": tensors["norm"]}
    for ours, theirs in names.items():
        for i, W in enumerate(tensors[ours]):
            state[f"model.layers.{i}.{theirs}.weight"] = halves(W, sizes.head_width) if ours in ("wq", "wk") else W
    return state


def model() -> Any:
    """The `LlamaForCausalLM`, in evaluation mode."""
    transformers = library("transformers")
    sizes, tensors = checkpoint()
    config = transformers.LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    llama = transformers.LlamaForCausalLM(config)
    llama.load_state_dict(state_dict(sizes, tensors))
    return llama.eval()


def pieces() -> list[tuple[str, float]]:
    """The tokens in the order of their ids, spaces as `▁`, with sentencepiece's scores."""
    content = data("stories260K", "tok512.bin").read_bytes()
    found, offset = [], 4
    while offset < len(content):
        score, length = struct.unpack_from("<fi", content, offset)
        text = content[offset + 8 : offset + 8 + length].decode()
        found.append((text.replace(" ", "▁"), score))
        offset += 8 + length
    return [(UNKNOWN, 0.0), (BEGIN, 0.0), (END, 0.0), *found[3:]]  # in the file the last two are between line breaks


def merges(scored: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """The pairs that make a token, the best-scored first."""
    words = dict(scored[FIRST_WORD_PIECE:])
    best_first = sorted(words, key=lambda word: -words[word])
    splits = ((word[:i], word[i:]) for word in best_first for i in range(1, len(word)))
    return [(left, right) for left, right in splits if left in words and right in words]


def tokenizer() -> Any:
    """The `PreTrainedTokenizerFast`: byte pairs, bytes for characters it does not know, a space before the text, `<s>`."""
    library("tokenizers")
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    scored = pieces()
    ids = {text: i for i, (text, _) in enumerate(scored)}
    bpe = models.BPE(ids, merges(scored), unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    whole = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(whole)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN}:1 $B:1", special_tokens=[(BEGIN, ids[BEGIN])]
    )
    return library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=UNKNOWN,
        model_max_length=checkpoint()[0].length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def save(folder: Path) -> Path:
    """Write both into `folder`, where the `Auto` classes of transformers find them."""
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
