"""A model's own Python code runs only where the command that loads the model was given the permission."""

import ast
import builtins
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import loralib
from loralib.cli import MISUSED, main
from loralib.errors import RunError
from loralib.recipes import comparison, paper_models, run_folder
from loralib.recipes.nlg import language_models
from loralib.recipes.nlu import encoders
from loralib.recipes.options import TrainOptions

SOURCE = Path(loralib.__file__).parent
CODE = """
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

Path({ran!r}).touch()

class StrangeConfig(BertConfig):
    model_type = "strange"

class Strange(BertForSequenceClassification):
    config_class = StrangeConfig

class StrangeText(BertForMaskedLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def stranger(encoder: Path, tmp_path: Path) -> Path:
    """A folder with a model whose classes are in a Python file; `ran`, next to it, appears when that file runs."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    config = json.loads((encoder / "config.json").read_text())
    autos = {
        "AutoConfig": "StrangeConfig",
        "AutoModelForSequenceClassification": "Strange",
        "AutoModelForCausalLM": "StrangeText",
    }
    config |= {"model_type": "strange", "auto_map": {auto: f"strange.{name}" for auto, name in autos.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    return folder


LOADERS: dict[str, Callable[[str], Any]] = {
    "encoder": lambda name: encoders.load_encoder(name, None),
    "language model": language_models.load_language_model,
    "shape": lambda name: paper_models.build(name, None),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_code_of_a_model_is_refused_without_a_question(stranger: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda prompt="": pytest.fail(f"asked: {prompt}"))
    with pytest.raises(
        RunError, match=r"stranger' needs Python code that comes with it, which is not run; .*=True\.$"
    ) as raised:
        LOADERS[kind](str(stranger))
    assert "--trust-remote-code" in raised.value.on_the_command_line()
    assert not (stranger.parent / "ran").exists()


def test_code_for_a_class_that_transformers_has_is_not_run(stranger: Path) -> None:
    config = json.loads((stranger / "config.json").read_text()) | {"model_type": "bert"}
    (stranger / "config.json").write_text(json.dumps(config))
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["strange.Own", None]}}
    (stranger / "tokenizer_config.json").write_text(json.dumps(own))
    assert type(encoders.load_encoder(str(stranger), None).model).__module__.startswith("transformers.models.bert")
    assert not (stranger.parent / "ran").exists()


def test_every_call_that_may_run_code_says_whether_it_is_trusted() -> None:
    calls = [
        (path.name, node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("from_pretrained", "from_config")
    ]
    named = [[keyword.arg or getattr(keyword.value, "id", "") for keyword in node.keywords] for _, node in calls]
    assert len(calls) > 4
    assert all({"trust_remote_code", "trust"} & set(names) for names in named), calls


def test_the_permission_is_kept_in_no_file_and_read_from_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(model="m", data="d.tsv", trust_remote_code=True)
    assert "trust_remote_code" not in options.to_dict()
    assert options.updated({"seed": 1}).trust_remote_code
    run_folder.write_options(tmp_path, options, None)
    assert not run_folder.read_options(tmp_path)[0].trust_remote_code
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(options.to_dict() | {"trust_remote_code": True}))
    with pytest.raises(
        RunError, match=r"config.yaml asks to run Python code .* which a file cannot allow; take trust_remote_code"
    ):
        run_folder.read_options(tmp_path)
    for words in (["train", "--config", str(config)], ["compare", f"--config={config}"]):
        assert main(words) == MISUSED
        assert "add --trust-remote-code if you trust" in capsys.readouterr().err


@pytest.mark.parametrize("trusted", [False, True])
def test_the_runs_of_a_comparison_get_the_permission_as_a_word(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Sequence[str]] = []
    monkeypatch.setattr(comparison, "wait_for", lambda words: started.append(words) or 1)
    with pytest.raises(RunError, match="ended with exit code 1"):
        comparison.train_apart(TrainOptions(model="m", data="d.tsv", trust_remote_code=trusted), tmp_path / "run")
    assert ("--trust-remote-code" in started[0]) == trusted
    assert "trust" not in (tmp_path / "run.yaml").read_text()


@pytest.mark.slow
def test_the_command_line_refuses_and_allows(stranger: Path, reviews: Path, tmp_path: Path) -> None:
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}

    def loralib(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "loralib", *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, input="y\ny\ny\n", env=environment)

    data = [
        "--data",
        str(reviews / "train.tsv"),
        "--max-train-rows",
        "64",
        "--num-train-epochs",
        "1",
        "--target-modules",
        "query",
    ]
    train = ["train", "--model", str(stranger), *data, "--output", str(tmp_path / "run")]
    for words in (train, ["predict", str(tmp_path / "run"), "good"]):
        refused = loralib(*words)
        assert refused.returncode == MISUSED, refused.stderr
        assert "add --trust-remote-code" in refused.stderr
        assert "Do you wish" not in refused.stdout + refused.stderr
        assert not (tmp_path / "ran").exists()
        allowed = loralib(*words, "--trust-remote-code")
        assert allowed.returncode == 0, allowed.stderr
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()


@pytest.mark.slow
def test_a_gguf_file_is_parsed_once_and_in_silence(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import gguf

    files: list[object] = []

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        def __init__(self, path: object):
            files.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    model, tokenizer = language_models.load_language_model("smollm2")
    assert len(files) == 1
    assert gguf.GGUFReader is Reader
    assert (len(tokenizer), model.config.vocab_size) == (49152, 49152)
    assert "".join(capfd.readouterr()) == ""
