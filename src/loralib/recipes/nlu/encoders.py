"""Encoders for classification: loading them, and knowing their parts."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...architectures import ATTENTION_DROPOUT, COUNT_FROM_PADDING, HEAD_DROPOUT
from ...errors import ConfigError, RunError
from ...patterns import within
from .. import model_loader
from ..records import listed


@dataclass(frozen=True)
class Headed:
    """A model, and the names of the modules of its head; none of a language model."""

    model: PreTrainedModel
    head: tuple[str, ...]

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer of the head."""
        parts = (self.model.get_submodule(part) for part in self.head)
        return [module for part in parts for module in part.modules() if isinstance(module, nn.Linear)][-1]


@dataclass(frozen=True)
class Encoder(Headed):
    """A model with a classification head and its tokenizer.

    head: the modules that the checkpoint did not fill or that lie outside the pretrained body. drawn: whether the head was
    drawn again, and not brought along by the checkpoint.
    """

    tokenizer: PreTrainedTokenizerBase
    drawn: bool


def outputs(labels: list[str] | None) -> dict[str, Any]:
    """What a model's config says of its outputs: one a label, or a single one (regression) for None."""
    if labels is None:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(labels),
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def load_encoder(
    name: str,
    labels: list[str] | None,
    *,
    head_dropout: float | None = None,
    attention_dropout: float | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """The pretrained encoder `name` with a head: one output a label, or a single one (regression) for None.

    trust_remote_code: whether to run the Python code that comes with the model, where it needs some.

    A head that the checkpoint brings along is kept only when it was trained for the same labels in the same order.
    """
    loaded = model_loader.load(
        AutoModelForSequenceClassification,
        name,
        "an encoder",
        outputs(labels),
        lambda config: set_dropouts(config, head_dropout=head_dropout, attention_dropout=attention_dropout),
        trust_remote_code=trust_remote_code,
        ignore_mismatched_sizes=True,
    )
    model, stored = loaded.model, loaded.stored
    _check_body(name, loaded)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = loaded.tokenizer.pad_token_id
    classifies = any("SequenceClassification" in architecture for architecture in stored.architectures or [])
    fits = _labels_of(stored) == labels
    encoder = Encoder(model, _head(model, loaded.missing), loaded.tokenizer, drawn=not (classifies and fits))
    if classifies and not fits:
        _renew_head(encoder, loaded.missing)
    return encoder


def _check_body(name: str, loaded: model_loader.Loaded) -> None:
    """`RunError` where weights of the body would be drawn at random, because the checkpoint lacks those of its embeddings or of
    a layer in a list of layers, or has any of another shape. A single module, such as a pooler, may be missing: it is trained
    with the head.
    """
    model, head = loaded.model, head_of(loaded.model)
    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Embedding)]
    unfit = sorted(key for key, *_ in loaded.mismatched if not within(key, head))
    unfit += sorted(key for key in loaded.missing if within(key, stacks) and not within(key, head))
    if unfit:
        raise RunError(
            f"the checkpoint of {name!r} lacks {len(unfit)} weights of a {type(model).__name__} in the shape that its "
            f"config.json says ({listed(unfit, most=3)}), which would be drawn at random; give the whole folder of one model."
        )


def _labels_of(stored: PretrainedConfig) -> list[str] | None:
    """What a checkpoint's head was trained for: its labels, or None for regression."""
    if stored.problem_type == "regression":
        return None
    return list((stored.id2label or {}).values())


def set_dropouts(
    config: PretrainedConfig, *, head_dropout: float | None = None, attention_dropout: float | None = None
) -> None:
    """Set the dropout before the classifier and that on attention weights, by whatever name the config knows them; None
    leaves one as it is. Raises `ConfigError` when the model has none."""
    for option, names, value in (
        ("head_dropout", HEAD_DROPOUT, head_dropout),
        ("attention_dropout", ATTENTION_DROPOUT, attention_dropout),
    ):
        model_loader.set_dropout(config, option, value, [names[config.model_type]] if config.model_type in names else [])


def _renew_head(encoder: Encoder, missing: set[str]) -> None:
    """Draw the parts of the head again that the checkpoint brings along: they were trained for other classes."""
    for part in encoder.head:
        for name, module in encoder.model.get_submodule(part).named_modules(prefix=part):
            if f"{name}.weight" not in missing and isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=getattr(encoder.model.config, "initializer_range", 0.02))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def check_length(encoder: Encoder, max_length: int, pairs: bool, prefix: int = 0) -> None:
    """`ConfigError` when the model has no positions for inputs of `max_length` tokens and the `prefix` in front of them, or no
    text would be left of them."""
    config = encoder.model.config
    reserved = config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0
    model_loader.check_length(config, max_length, reserved + prefix)
    special = encoder.tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special:
        raise ConfigError(f"max_length={max_length}: {special} tokens are the tokenizer's own, so no text would be left.")


def head_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the modules outside the pretrained body that have parameters."""
    body = model.base_model_prefix
    return tuple(name for name, child in model.named_children() if name != body and any(True for _ in child.parameters()))


def _head(model: PreTrainedModel, missing: set[str]) -> tuple[str, ...]:
    head = list(head_of(model))
    filled_anew = {key.rpartition(".")[0] for key in missing}
    head += [name for name in sorted(filled_anew) if not any(name == part or name.startswith(part + ".") for part in head)]
    return tuple(head)


def freeze_all_but_last(encoder: Headed) -> None:
    """Freeze the head but for its last linear layer; what is frozen is saved all the same, since its start was drawn."""
    for part in encoder.head:
        encoder.model.get_submodule(part).requires_grad_(False)
    encoder.classifier.requires_grad_(True)


def center(encoder: Encoder, mean: float) -> None:
    """Let a regression head that was drawn again begin at the mean of the labels, and not at 0, which LoRA's few parameters
    would take hundreds of steps to leave."""
    if encoder.drawn and encoder.classifier.bias is not None:
        nn.init.constant_(encoder.classifier.bias, mean)
