"""What `config.json` says of a model whose head an adapter brings along: its class and its labels, not the base's.

The task is what the adapter's metadata call `task_type`. Adapters do not hold the names of classes: they are given, or kept
from a base that has as many, or `LABEL_0`, `LABEL_1` …
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import architectures
from ..adapters.adapter import Adapter
from ..errors import ConfigError

_CLASS_ENDINGS = re.compile(r"(For[A-Z]\w*|(With)?LMHeadModel|ModelWithLMHead|DoubleHeadsModel|EncoderModel|Model)$")
_OUTPUT_FIELDS = ("num_labels", "_num_labels", "problem_type")
_CLASSIFYING = ("SEQ_CLS", "TOKEN_CLS")


def output_layer(adapter: Adapter) -> str | None:
    """The last layer of the head that classifies, which the adapter holds in full; None when it holds none.

    >>> import torch, loralib as lora
    >>> tensors = {"classifier.dense.weight": torch.ones(4, 4), "classifier.out_proj.weight": torch.ones(3, 4)}
    >>> output_layer(lora.Adapter(lora.LoRAConfig(), {}, tensors, {"task_type": "SEQ_CLS"}))
    'classifier.out_proj'
    """
    if adapter.metadata.get("task_type") not in _CLASSIFYING:
        return None
    return next((layer for layer in architectures.CLASSIFIERS if f"{layer}.weight" in adapter.tensors), None)


def config_with_head(config: Mapping[str, Any], adapter: Adapter, labels: Sequence[str] | None) -> dict[str, Any]:
    """The base's `config` with the class and the labels of the model that the adapter was trained in.

    labels: the names of the classes. Raises `ConfigError` when the head has another number of outputs, or there is none.
    """
    layer, ending = output_layer(adapter), architectures.TASK_CLASSES.get(adapter.metadata.get("task_type", ""))
    outputs = len(adapter.tensors[f"{layer}.weight"]) if layer else None
    _check_labels(labels, outputs)
    if not config or ending is None or not (layer or adapter.tensors):
        return dict(config)
    found = dict(config)
    if name := _class_name(config, ending):
        found["architectures"] = [name]
    if layer and outputs:
        declared = _outputs(config, outputs, labels)
        found = {key: value for key, value in found.items() if not declared or key not in _OUTPUT_FIELDS} | declared
    return found


def _check_labels(labels: Sequence[str] | None, outputs: int | None) -> None:
    if labels is None:
        return
    if outputs is None:
        raise ConfigError(
            "labels are for an adapter that brings a head that classifies, and this one has none; leave them out."
        )
    if len(labels) != outputs or len(set(labels)) < outputs:
        raise ConfigError(f"{len(labels)} labels for a head of {outputs} outputs; give each output a name of its own.")


def _class_name(config: Mapping[str, Any], ending: str) -> str | None:
    """The class with another head; None where neither the base's class nor its type tells it.

    >>> _class_name({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "ForTokenClassification")
    'GPT2ForTokenClassification'
    """
    known = architectures.CLASS_NAMES.get(str(config.get("model_type")))
    names: Sequence[str] = config.get("architectures") or ()
    if names and names[0].endswith(ending):
        return names[0]
    if known is None and names:
        known = _CLASS_ENDINGS.sub("", names[0])
    return known and known + ending


def _outputs(config: Mapping[str, Any], outputs: int, labels: Sequence[str] | None) -> dict[str, Any]:
    """What the configuration says of the outputs."""
    kept = config.get("id2label")
    if labels is None and isinstance(kept, dict) and len(kept) == outputs:
        return {}
    names = labels or [f"LABEL_{i}" for i in range(outputs)]
    kind = "single_label_classification" if labels else "regression" if outputs == 1 else None
    return {
        **({"problem_type": kind} if kind else {}),
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def of_outputs(adapter: Adapter) -> set[str]:
    """The tensors that have a row for each class, of which a base may hold another number."""
    layer = output_layer(adapter)
    return {f"{layer}.{part}" for part in ("weight", "bias")} if layer else set()
