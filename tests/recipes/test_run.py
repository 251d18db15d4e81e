"""One run: what is refused before anything is written, and what it says and keeps of what happened."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from rich.console import Console

import loralib as lora
from loralib import ops
from loralib.errors import ConfigError, DataError, RunError, TargetError
from loralib.recipes import run_folder
from loralib.recipes.options import TrainOptions
from loralib.recipes.run import Interrupted, train
from recipes.conftest import options, run
from recipes.nlu.test_text_classification import InterruptAt


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model": "no/such-model"}, RunError, "no/such-model.*cannot be loaded"),
        ({"model": "./nowhere"}, RunError, "nowhere.*cannot be loaded"),
        ({"data": "none.tsv"}, DataError, "does not exist"),
        ({"label_column": "lable"}, DataError, "no column 'lable'.*Nearest: label"),
        ({"problem": "regression"}, DataError, "not a number"),
        ({"target_modules": "qeury,value"}, TargetError, "'qeury' matches no layer.*query \\(2 layers\\)"),
        ({"metric_for_best_model": "pearson"}, ConfigError, "must be one of accuracy"),
        ({"data": "imdb", "eval_data": None}, DataError, "hub data set 'imdb'"),
        ({"gradient_accumulation_steps": 5}, ConfigError, "batch_size=16"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(
    encoder: Path, reviews: Path, tmp_path: Path, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "run", options(encoder, reviews, **values))
    assert not (tmp_path / "run").exists()


def test_frozen_products_by_onednn_learn_as_well(encoder: Path, reviews: Path, tmp_path: Path, monkeypatch: Any) -> None:
    taken: list[int] = []
    inner = ops.onednn.product
    monkeypatch.setattr(ops.onednn, "product", lambda *args: taken.append(1) or inner(*args))
    plain, routed = (run(tmp_path / str(on), options(encoder, reviews, onednn=on, num_train_epochs=1)) for on in (False, True))
    assert taken
    assert routed["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"method": "full"}, "onednn=True has no effect with method=full"),
        ({"bf16": True}, "onednn=True has no effect with bf16"),
    ],
)
def test_onednn_is_refused_where_it_cannot_act(others: dict[str, Any], message: str, encoder: Path, reviews: Path) -> None:
    with pytest.raises(lora.ConfigError, match=message):
        options(encoder, reviews, onednn=True, **others)


def test_a_resumed_run_computes_as_it_began_whatever_timing_would_find(
    encoder: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.onednn, "available", lambda: True)
    monkeypatch.setattr(ops.measured, "gain", lambda model: 1.9)
    taken: list[int] = []
    monkeypatch.setattr(ops.onednn, "product", lambda x, W, b: taken.append(1) or F.linear(x, W, b))
    chosen = options(encoder, reviews, num_train_epochs=2)
    assert chosen.onednn == "auto"
    shown = io.StringIO()
    with pytest.raises(Interrupted):
        train(chosen, tmp_path, console=Console(file=shown, width=200), callbacks=[InterruptAt(9)])
    assert "oneDNN computes the frozen products, 1.90 times as fast" in shown.getvalue()
    assert run_folder.read_options(tmp_path)[0].onednn is True
    monkeypatch.setattr(ops.measured, "gain", lambda model: pytest.fail("timed again"))
    taken.clear()
    run(tmp_path, chosen, resume=True)
    assert taken


def quietly(folder: Path, chosen: TrainOptions, **how: Any) -> Any:
    return train(chosen, folder, console=Console(file=io.StringIO()), **how)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"holds no run to resume \(config.yaml is missing\); leave out --resume"),
        (["config.yaml", "metrics.json"], "is finished; there is nothing to resume"),
        (["config.yaml"], "has no whole checkpoint to resume from; use --overwrite to begin again"),
    ],
)
def test_a_run_goes_on_only_from_a_whole_checkpoint_of_an_unfinished_one(
    files: list[str], message: str, encoder: Path, reviews: Path, tmp_path: Path
) -> None:
    chosen = options(encoder, reviews)
    if files:
        run_folder.write_options(tmp_path, chosen, ["a", "b"])
        (tmp_path / ".loralib.json").write_text('{"loralib": "run"}')
    if "metrics.json" in files:
        run_folder.write_metrics(tmp_path, {})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RunError, match=message):
        quietly(tmp_path, chosen, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_interruption_is_ctrl_c_that_says_where_to_go_on() -> None:
    error = Interrupted(Path("run"), Path("run/checkpoints/checkpoint-3"))
    assert isinstance(error, KeyboardInterrupt)
    assert (error.folder, error.checkpoint) == (Path("run"), Path("run/checkpoints/checkpoint-3"))
