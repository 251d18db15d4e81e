"""A merged model with a head that the adapter brings is loaded by transformers as what it is."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import loralib as lora
from hf import HEADS, QUERY_VALUE, logits, tiny
from loralib import architectures
from loralib.checkpoints.classifiers import config_with_head
from loralib.checkpoints.verify import check_merged
from models import close, randomize
from peers import library

LABELS = ["sad", "meh", "glad"]


def trained(family: str, outputs: int, task_type: str = "SEQ_CLS") -> tuple[nn.Module, lora.Adapter]:
    """A classifier with LoRA and a head of its own, and its adapter."""
    model = tiny(family, num_labels=outputs)
    pooler = ["pooler"] if family == "Bert" else []
    config = lora.LoRAConfig(r=2, target_modules=QUERY_VALUE[family], modules_to_save=[*HEADS[family], *pooler])
    lora.inject(model, config)
    adapter = lora.extract(randomize(model))
    return model, replace(adapter, metadata={"task_type": task_type})


def base_of(model: nn.Module, kind: str, folder: Path) -> Path:
    """A base of the same body: without a head, with a language model's, or with the head of a classifier of five classes."""
    body = copy.deepcopy(model)
    lora.eject(body)
    if kind == "bare":
        body.base_model.save_pretrained(folder)
        return folder
    family = type(model).__name__.removesuffix("ForSequenceClassification")
    other = tiny(family, "ForMaskedLM" if kind == "language" else "ForSequenceClassification", num_labels=5)
    other.base_model.load_state_dict(body.base_model.state_dict(), strict=False)
    other.save_pretrained(folder)
    return folder


def loads_as(folder: Path, kind: str = "AutoModelForSequenceClassification") -> nn.Module:
    """The model that transformers makes of a folder; all of its weights are from there."""
    model, info = getattr(library("transformers"), kind).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", ["bare", "language", "classifier"])
@pytest.mark.parametrize("family", list(HEADS))
def test_the_result_is_loaded_as_the_classifier_that_was_trained(family: str, kind: str, tmp_path: Path) -> None:
    model, adapter = trained(family, 3)
    base = base_of(model, kind, tmp_path / "base")
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", labels=LABELS)
    merged = loads_as(tmp_path / "out")
    assert type(merged).__name__ == f"{family}ForSequenceClassification"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [type(merged).__name__]
    assert report.architecture == (None if kind == "classifier" else type(merged).__name__)
    assert merged.config.id2label == dict(enumerate(LABELS))
    assert merged.config.label2id == {label: i for i, label in enumerate(LABELS)}
    assert merged.config.problem_type == "single_label_classification"
    assert close(logits(merged), logits(model), factor=64)
    assert check_merged(base, adapter, tmp_path / "out").worst <= 1


def test_one_output_is_a_regression(tmp_path: Path) -> None:
    model, adapter = trained("Bert", 1)
    lora.merge_checkpoint(base_of(model, "classifier", tmp_path / "base"), adapter, tmp_path / "out")
    merged = loads_as(tmp_path / "out")
    assert (merged.config.num_labels, merged.config.problem_type) == (1, "regression")
    assert close(logits(merged), logits(model), factor=64)


def test_the_base_keeps_its_labels_where_the_head_has_as_many(tmp_path: Path) -> None:
    model, adapter = trained("Bert", 5)
    base = base_of(model, "classifier", tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"id2label": {str(i): "abcde"[i] for i in range(5)}}
    (base / "config.json").write_text(json.dumps(config))
    lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert loads_as(tmp_path / "out").config.id2label == dict(enumerate("abcde"))
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "a"], []])
def test_labels_that_do_not_fit_the_head_are_refused_and_nothing_is_written(labels: list[str], tmp_path: Path) -> None:
    model, adapter = trained("Bert", 3)
    base = base_of(model, "bare", tmp_path / "base")
    with pytest.raises(lora.ConfigError, match=f"{len(labels)} labels for a head of 3 outputs"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", labels=labels)
    headless = replace(adapter, tensors={})
    with pytest.raises(lora.ConfigError, match="has none"):
        lora.merge_checkpoint(base, headless, tmp_path / "out", labels=LABELS)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_another_width_of_the_head_is_still_refused(tmp_path: Path) -> None:
    model, adapter = trained("Bert", 3)
    base = base_of(model, "classifier", tmp_path / "base")
    wide = replace(adapter, tensors={**adapter.tensors, "classifier.weight": torch.ones(3, 17)})
    with pytest.raises(lora.FormatError, match=r"classifier\.weight: shape \(3, 17\)"):
        lora.merge_checkpoint(base, wide, tmp_path / "out")


def head_of(task_type: str, **tensors: torch.Tensor) -> lora.Adapter:
    return lora.Adapter(
        lora.LoRAConfig(), {}, {name.replace("_", "."): t for name, t in tensors.items()}, {"task_type": task_type}
    )


def test_other_tasks_name_their_classes_and_a_language_model_stays_one() -> None:
    bert = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "num_labels": 9}
    tokens = config_with_head(bert, head_of("TOKEN_CLS", classifier_weight=torch.ones(4, 2)), None)
    assert tokens["architectures"] == ["BertForTokenClassification"]
    assert tokens["id2label"] == {str(i): f"LABEL_{i}" for i in range(4)}
    assert "num_labels" not in tokens
    answers = config_with_head(bert, head_of("QUESTION_ANS", outputs_weight=torch.ones(2, 2)), None)
    assert answers == {**bert, "architectures": ["BertForQuestionAnswering"]}
    assert config_with_head(bert, head_of("CAUSAL_LM", score_weight=torch.ones(2, 2)), None) == bert
    assert config_with_head({}, head_of("SEQ_CLS", score_weight=torch.ones(2, 2)), None) == {}


def test_names_of_classes_are_those_of_transformers() -> None:
    library("transformers")
    from transformers.models.auto import modeling_auto as auto

    head = head_of("SEQ_CLS", score_weight=torch.ones(3, 2))
    bodies = (auto.MODEL_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    expected, seen = dict(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES), 0
    for kind, name in expected.items():
        for body in (names[kind] for names in bodies if isinstance(names.get(kind), str)):
            said = config_with_head({"model_type": kind, "architectures": [body]}, head, None)
            assert said["architectures"] == [name]
            seen += 1
    assert seen > 100
    for kind in set(architectures.ENCODERS):
        assert config_with_head({"model_type": kind}, head, None)["architectures"] == [expected[kind]]
