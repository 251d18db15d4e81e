"""The example of that name, on a tiny DistilBERT and a few made-up reviews."""

import gzip
import json
import random
import sys
from pathlib import Path

import pytest
import torch

from loralib.cli import guarded, main
from loralib.errors import DataError
from loralib.recipes import comparison
from recipes.conftest import sentence

sys.path.append(str(Path(__file__).parent.parent))  # `examples` is not a part of what is installed

from examples import imdb_distilbert

pytestmark = pytest.mark.slow

pytest_plugins = ["recipes.conftest"]


@pytest.fixture(scope="module")
def distilbert(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    folder = tmp_path_factory.mktemp("distilbert") / "distilbert"
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertModel(config).save_pretrained(folder)
    return folder


def test_the_tutorial_end_to_end(
    distilbert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    for name in imdb_distilbert.FILES:
        with gzip.open(tmp_path / name, "wt") as file:
            file.writelines(json.dumps({"label": i % 2, "text": sentence(rng, i % 2)}) + "\n" for i in range(80))
    monkeypatch.setattr(comparison, "wait_for", lambda words: main(list(words)))
    budget = ["--train-rows", "64", "--test-rows", "40", "--epochs", "1", "--search", "2"]
    own = ["--data", str(tmp_path), "--model", str(distilbert), "--output", str(tmp_path / "out")]
    assert imdb_distilbert.run(imdb_distilbert.words([*own, *budget])) == 0
    shown = capsys.readouterr().out
    assert f"Accuracy of {distilbert} on the test reviews" in shown
    for method, figure in (("last-layers", "86.22"), ("lora", "89.44"), ("full", "92.39")):
        assert any(line.startswith(f"  {method}") and figure in line for line in shown.splitlines())
    assert (tmp_path / "out" / "best.yaml").is_file()
    last = json.loads((tmp_path / "out" / "last-layers" / "metrics.json").read_text())
    assert last["parameters"]["trained"] == 16 * 16 + 16 + 2 * 16 + 2  # pre-classifier and classifier
    assert last["test_rows"] == 40


def test_without_a_folder_the_reviews_come_from_the_hub() -> None:
    words = imdb_distilbert.comparison(imdb_distilbert.words([]))
    assert words[words.index("--data") + 1] == "stanfordnlp/imdb"
    assert words[words.index("--test-split") + 1] == "test"
    assert "--test-data" not in words


def test_reviews_that_are_not_there_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = imdb_distilbert.words(["--data", str(tmp_path)])
    with pytest.raises(DataError, match=r"does not hold train\.jsonl\.gz and test\.jsonl\.gz; give --data"):
        imdb_distilbert.comparison(given)
    assert guarded(lambda: imdb_distilbert.run(given)) == 2
    assert capsys.readouterr().err.count("\n") == 1
