"""Loading pretrained models with their tokenizers, quietly, from wherever they are."""

import copy
import functools
import io
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GgufConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, RunError
from ..storage.model_packages import PACKAGES
from ..train.quiet import quiet_transformers
from . import run_folder
from .model_sources import ModelSource, locate

_UNLOADABLE = (  # what transformers raises for a damaged folder, whose config.json may say anything
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,  # a GGUF file that ends early
)


@dataclass(frozen=True)
class Loaded:
    """A model as it was loaded, with its tokenizer, which can pad.

    stored: the config that its checkpoint has. missing: the names of weights that the checkpoint lacks, drawn at random.
    mismatched: those that have another shape in the checkpoint, with both shapes; they are drawn at random too.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stored: PretrainedConfig
    missing: set[str]
    mismatched: list[tuple[str, Any, Any]]


@quiet_transformers()
def load(
    kind: Any,
    name: str,
    title: str,
    outputs: Mapping[str, Any],
    configure: Callable[[PretrainedConfig], None],
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    **how: Any,
) -> Loaded:
    """The pretrained model `name` of the class `kind`, from wherever `model_sources.locate` finds it.

    title: what a message calls such a model. outputs: fields of its config. configure: sets more of them. trust_remote_code:
    whether to run the Python code that comes with the model, where it needs some. dtype: of its weights. how: more for
    `from_pretrained`.
    Raises `RunError` when the model cannot be had, offline included.
    """
    source = locate(name)
    trust: dict[str, Any] = {"trust_remote_code": bool(trust_remote_code)}  # None would let transformers ask on standard input
    trust |= reading(source)
    try:
        with _gguf() if source.gguf else nullcontext():
            stored = AutoConfig.from_pretrained(source.path, **trust)
            config = AutoConfig.from_pretrained(source.path, **trust, **outputs) if outputs else copy.deepcopy(stored)
            configure(config)
            tokenizer = AutoTokenizer.from_pretrained(source.path, **trust)
            exact = {"config": config, "dtype": dtype, "output_loading_info": True}
            if source.gguf:
                exact["quantization_config"] = GgufConfig(dequantize=True)
            model, info = kind.from_pretrained(source.path, **exact, **trust, **how)
    except ConfigError:
        raise
    except _UNLOADABLE as error:
        refuse_code(name, error)
        refuse_what_was_trained(Path(name))
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"model {name!r} cannot be loaded as {title}; {_remedy(source)}. ({reason})") from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where there is none: all texts are alike
        raise RunError(f"model {name!r} has no vocabulary for texts; add the files of its tokenizer, such as tokenizer.json.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked in training and decoding
    if source.gguf:
        _make_plain(model)
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = source.name
    return Loaded(model, tokenizer, stored, set(info["missing_keys"]), list(info["mismatched_keys"]))


def saved_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a run kept with its adapter; None where it kept none."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def _remedy(source: ModelSource) -> str:
    """What to do about a model that cannot be loaded."""
    if source.gguf:
        return "give a whole GGUF file of an architecture that transformers reads, or a folder with the weights as safetensors"
    packages = "" if "/" in source.path else f", or the name of a model that comes as a package: {', '.join(PACKAGES)}"
    return f"give a local folder, or a name on the Hugging Face hub and a network{packages}"


def reading(source: ModelSource) -> dict[str, Any]:
    """What `from_pretrained` takes besides the path. Raises `RunError` where the package that reads GGUF is not installed."""
    if source.gguf is None:
        return {}
    if find_spec("gguf") is None:
        raise RunError(f"{source.gguf} is a GGUF file, which needs the package gguf; run: pip install gguf")
    return {"gguf_file": source.gguf}


@contextmanager
def _gguf() -> Iterator[None]:
    """Context manager for loading from a GGUF file: it is parsed once, where transformers does so for the config, the tokenizer
    and the weights (seconds each time), and the bar that is drawn whatever is asked is not seen."""
    gguf: Any = import_module("gguf")
    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        gguf.GGUFReader = reader


def _make_plain(model: PreTrainedModel) -> None:
    """A model whose GGUF weights are unpacked, as any other: transformers would still call it quantized and not save it."""
    plain: Any = model
    plain.hf_quantizer, plain.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)


def refuse_code(name: str, error: Exception) -> None:
    """`RunError` where `error` is transformers' refusal to run code that was not trusted."""
    if "trust_remote_code" in str(error):
        raise RunError(
            f"model {name!r} needs Python code that comes with it, which is not run",
            "read that code and, if you trust it, set trust_remote_code=True",
            option="read that code and, if you trust it, add --trust-remote-code",
        ) from None


def refuse_what_was_trained(folder: Path) -> None:
    """`RunError` where there is an adapter, or a run, instead of a model."""
    if (folder / "adapter_config.json").is_file():
        raise RunError(f"{folder} holds an adapter; give the model that it was trained on, and the adapter as --init-adapter.")
    if run_folder.holds_run(folder):
        raise RunError(f"{folder} is a run; give the model that it was trained on, and the run as --init-adapter.")


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> None:
    """`RunError` when the tokenizer gives a token of `rows`, or padding, a number for which the model has no embedding, or has
    no padding at all."""
    if tokenizer.pad_token_id is None:
        raise RunError(
            f"the tokenizer of {model.name_or_path!r} has no padding token, and no end-of-text token to take its place; give "
            'it one, by tokenizer.add_special_tokens({"pad_token": "<pad>"}), and save it with the model resized to it.'
        )
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return  # a model that computes its embeddings
    most = max((max(row, default=0) for row in rows), default=0)
    most = max(most, tokenizer.pad_token_id)
    if isinstance(embedding, nn.Embedding) and most >= embedding.num_embeddings:
        raise RunError(
            f"{model.name_or_path}: the tokenizer, of {len(tokenizer):,} tokens, gives "
            f"{tokenizer.convert_ids_to_tokens(most)!r} the number {most:,}, and the model has embeddings of "
            f"{embedding.num_embeddings:,} tokens only; give a model with its own tokenizer, or save one whose embeddings were "
            "resized: model.resize_token_embeddings(len(tokenizer))."
        )


def set_dropout(
    config: PretrainedConfig, option: str, value: float | None, names: Collection[str], what: str = "such a dropout"
) -> None:
    """Set the dropouts that the config calls `names`; None leaves them as they are. `ConfigError` when it has none."""
    if value is None:
        return
    if not names:
        raise ConfigError(f"{option}={value:g}: a {config.model_type} model is not known to have {what}; leave it out.")
    for name in names:
        setattr(config, name, value)


def check_length(config: PretrainedConfig, length: int, reserved: int = 0) -> None:
    """`ConfigError` when the model has no positions for `length` tokens. reserved: positions that no token gets."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0 and length > positions - reserved:
        raise ConfigError(f"max_length={length}: the model takes at most {positions - reserved} tokens.")
