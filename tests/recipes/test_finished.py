"""A finished run is opened as what it trained: the base model with its adapter merged, or the whole model that was saved."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import loralib as lora
from loralib.errors import RunError
from loralib.recipes import run_folder
from loralib.recipes.finished import FinishedRun
from loralib.recipes.options import TrainOptions
from models import bits, injected, mlp, same_bits


class Toy(FinishedRun):
    """A run of a small model, which records what was loaded."""

    kinds = ("classification",)
    loaded: list[tuple[Any, ...]]

    @staticmethod
    def load(name: str, options: TrainOptions, labels: list[str] | None, trust_remote_code: bool) -> Any:
        Toy.loaded = [(name, labels, trust_remote_code)]
        return base().train(), "tokenizer"


def base() -> nn.Sequential:
    model = mlp(4, 3, 2)
    for i, parameter in enumerate(model.parameters()):
        nn.init.constant_(parameter, i + 1)
    return model


def finished(folder: Path, **values: Any) -> Path:
    options = TrainOptions.of({"model": "the-base", "data": "d.tsv"} | values)
    run_folder.write_options(folder, options, ["no", "yes"])
    if options.method == "lora":
        lora.save(lora.extract(injected(base(), target_modules=["0"])), folder / "adapter")
    else:
        (folder / "model").mkdir()
    run_folder.write_metrics(folder, {"value": 1.0})
    return folder


@pytest.mark.parametrize("trusted", [False, True])
def test_an_adapter_is_merged_into_its_base_for_evaluation(trusted: bool, tmp_path: Path) -> None:
    opened = Toy.open(finished(tmp_path), trusted)
    assert Toy.loaded == [("the-base", ["no", "yes"], trusted)]
    assert (opened.folder, opened.labels, opened.tokenizer) == (tmp_path, ["no", "yes"], "tokenizer")
    assert not any(module.training for module in opened.model.modules())
    layer: Any = opened.model[0]  # type: ignore[index]
    assert layer.merged
    update = lora.load(tmp_path / "adapter").layers["0"]
    assert same_bits(layer.weight, update.effective_weight(base()[0].weight))
    assert bits(base()[0].weight) != bits(layer.weight)


def test_a_whole_model_is_loaded_from_the_run(tmp_path: Path) -> None:
    opened = Toy.open(finished(tmp_path, method="full"))
    assert Toy.loaded[0][0] == str(tmp_path / "model")
    assert not isinstance(opened.model[0], lora.LoRALayer)  # type: ignore[index]


def test_runs_of_another_kind_and_unfinished_ones_are_refused(tmp_path: Path) -> None:
    text = {"problem": "generation", "data": "d.jsonl"}
    with pytest.raises(RunError, match=r"the run in .* generates text; use loralib generate and loralib score"):
        Toy.open(finished(tmp_path / "text", **text))
    (finished(tmp_path / "part") / "metrics.json").unlink()
    with pytest.raises(RunError, match="is not finished"):
        Toy.open(tmp_path / "part")
    with pytest.raises(RunError, match="is not a run folder"):
        Toy.options_of(tmp_path)
