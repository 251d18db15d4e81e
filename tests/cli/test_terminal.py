"""What strangers' files say reaches the terminal without escape sequences."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loralib.cli import FAILED, INTERRUPTED, MISUSED, guarded, main
from loralib.errors import FormatError
from loralib.recipes.options import TrainOptions

ESCAPE = "\x1b]0;owned\x07\x1b[31m\r\u202e\x9b2J"


def clean(text: str) -> bool:
    return all(char.isprintable() for line in text.split("\n") for char in line)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FormatError(f"tensor {ESCAPE} is wrong"), MISUSED),
        (KeyboardInterrupt(f"go on in {ESCAPE}"), INTERRUPTED),
        (OSError(5, "bad", ESCAPE), FAILED),
    ],
)
def test_an_error_is_one_line_that_the_terminal_does_not_obey(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert guarded(fail) == code
    said = capsys.readouterr().err
    assert clean(said)
    assert said.count("\n") == 1
    assert "owned" in said


def test_names_in_an_adapter_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / f"a{ESCAPE}"
    folder.mkdir()
    layer = f"base_model.model.{ESCAPE}"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 3), f"{layer}.lora_B.weight": torch.ones(3, 2)},
        folder / "adapter_model.safetensors",
    )
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a"]}
    for values in (config, config | {"r": 3}, config | {ESCAPE: 1}, config | {"rank_pattern": {f"({ESCAPE}+)+": 2}}):
        (folder / "adapter_config.json").write_text(json.dumps(values))
        main(["info", str(folder)])
        main(["convert", str(folder), "-o", str(tmp_path / "none" / "b.safetensors"), "--format", "kohya"])
        said = capsys.readouterr()
        assert clean(said.out), ascii(said.out)
        assert clean(said.err), ascii(said.err)


def test_labels_and_texts_of_a_prediction_are_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loralib.recipes.nlg import generator
    from loralib.recipes.nlu import predictor

    class Opened:
        def predict(self, texts: list[str], pairs: None) -> list[tuple[str, float]]:
            return [(ESCAPE, 0.5) for _ in texts]

        def generate(self, texts: list[str], *how: object, **more: object) -> list[str]:
            return [ESCAPE for _ in texts]

    options = TrainOptions(model="m", data="d.tsv")
    monkeypatch.setattr(predictor, "open_run", lambda folder, trust: Opened())
    monkeypatch.setattr(generator, "open_run", lambda folder, trust: Opened())
    monkeypatch.setattr("loralib.recipes.run_folder.read_options", lambda folder: (options, None))
    for words in (["predict", str(tmp_path), f"text {ESCAPE}"], ["generate", str(tmp_path), "input"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert clean(said)
        assert "owned" in said
        assert said.count("\n") == 1
