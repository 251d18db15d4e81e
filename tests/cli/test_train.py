"""`loralib train --preset`: one command from the paper's recipe to its median."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import loralib as lora
from loralib.cli import main
from loralib.recipes import run_folder

pytestmark = pytest.mark.slow

pytest_plugins = ["recipes.conftest"]

TINY = [
    "--num-train-epochs",
    "1",
    "--max-length",
    "32",
    "--batch-size",
    "8",
    "--gradient-accumulation-steps",
    "1",
    "--learning-rate",
    "1e-2",
]


@pytest.fixture(scope="module")
def roberta(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random RoBERTa in a folder of the name that the presets know."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("models") / "roberta-base"
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        type_vocab_size=1,
        pad_token_id=0,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of MNLI and MRPC."""
    folder = tmp_path_factory.mktemp("glue")
    labels = ["entailment", "neutral", "contradiction"]
    head = "index\tsentence1\tsentence2\tlabel1\tgold_label"
    for name in ("train", "dev_matched"):
        (folder / "MNLI").mkdir(exist_ok=True)
        rows = [f"{i}\tthe lamp {i} was good\ta fine film\tneutral\t{labels[i % 3]}" for i in range(18)]
        (folder / "MNLI" / f"{name}.tsv").write_text("\n".join([head, *rows]))
    for name in ("train", "dev"):
        (folder / "MRPC").mkdir(exist_ok=True)
        rows = [f"{i % 2}\t1\t2\tthe soup was dull\t{'a bad film' if i % 2 else 'good soup'}" for i in range(16)]
        (folder / "MRPC" / f"{name}.tsv").write_text("\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows]))
    return folder


def words(roberta: Path, glue: Path, *more: str) -> list[str]:
    return ["train", "--task", "mrpc", "--preset", "scripts", "--model", str(roberta), "--data-dir", str(glue), *TINY, *more]


def test_one_command_trains_mnli_first_and_then_the_seeds(
    roberta: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words(roberta, glue, "--seeds", "2")) == 0
    shown = capsys.readouterr().out
    assert "1 of 2: mnli, whose factors the next starts from" in shown
    assert "accuracy, median of 2: " in shown
    assert "the paper, for the median of 5 and its own budget: 89.7 ± 0.7" in shown
    first, second = tmp_path / "runs" / "mnli-scripts-roberta-base", tmp_path / "runs" / "mrpc-scripts-roberta-base"
    assert {path.name for path in second.iterdir()} == {"seed-0", "seed-1", "seeds.yaml", "summary.json", ".loralib.json"}
    chosen, labels = run_folder.read_options(second / "seed-1")
    assert labels == ["not_equivalent", "equivalent"]
    assert (chosen.init_adapter, chosen.lora.r, chosen.lora.lora_alpha, chosen.weight_decay) == (
        str(first / "seed-0"),
        8,
        16.0,
        0.1,
    )
    assert (chosen.metric, chosen.seed, chosen.num_train_epochs, chosen.warmup_ratio) == ("accuracy", 1, 1.0, 0.06)
    assert len(run_folder.read_options(first / "seed-0")[1] or ()) == 3
    assert main(["evaluate", str(first / "seed-0"), "--data", "dev_matched", "--json"]) == 0
    measured = json.loads((first / "seed-0" / run_folder.METRICS).read_text())["value"]
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(measured)
    assert main(["evaluate", str(first / "seed-0"), "--data", "dev_mismatched"]) == 2
    assert "MNLI/dev_mismatched.tsv does not exist" in capsys.readouterr().err
    before = (first / "seed-0" / run_folder.METRICS).stat().st_mtime_ns
    assert main(words(roberta, glue, "--seeds", "1", "--overwrite")) == 0
    assert (first / "seed-0" / run_folder.METRICS).stat().st_mtime_ns == before
    assert json.loads((second / run_folder.SUMMARY).read_text())["values"].keys() == {"0"}
    assert main(words(roberta, glue, "--seeds", "2", "--resume")) == 0
    assert json.loads((second / run_folder.SUMMARY).read_text())["values"].keys() == {"0", "1"}
    assert main(words(roberta, glue, "--resume", "--weight-decay", "0.5")) == 2
    assert "--weight-decay is 0.1 in the run in runs/mrpc-scripts-roberta-base" in capsys.readouterr().err


def test_an_adapter_of_ones_own_is_the_start_if_it_is_given(
    roberta: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mnli = words(roberta, glue, "--seeds", "1", "--output", str(tmp_path / "mnli"))
    mnli[2] = "mnli"
    assert main(mnli) == 0
    start = str(tmp_path / "mnli" / "seed-0")
    own = ["--seeds", "1", "--output", str(tmp_path / "mrpc"), "--init-adapter", start, "--learning-rate", "1e-9"]
    assert main([*words(roberta, glue), *own]) == 0
    assert "1 of 2" not in capsys.readouterr().out
    before, after = lora.load(tmp_path / "mnli/seed-0/adapter"), lora.load(tmp_path / "mrpc/seed-0/adapter")
    for name, update in after.layers.items():
        assert torch.allclose(update.B, before.layers[name].B, atol=1e-6)


@pytest.mark.parametrize("model", ["roberta-base", "microsoft/deberta-v2-xxlarge"])
@pytest.mark.parametrize("preset", ["paper", "scripts"])
def test_a_dry_run_prints_the_exact_arguments_and_touches_nothing(
    preset: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--task", "rte", "--preset", preset, "--model", model, "--dry-run"]) == 0
    stages = yaml.safe_load(capsys.readouterr().out)["would_train"]
    assert not list(tmp_path.iterdir())
    name = model.rpartition("/")[2]
    assert [stage["folder"] for stage in stages] == [f"runs/{task}-{preset}-{name}" for task in ("mnli", "rte")]
    assert [stage["seeds"] for stage in stages] == [[0], [0, 1, 2, 3, 4]]
    assert [stage["training_rows"] for stage in stages] == [392_702, 2_490]
    assert stages[1]["options"]["init_adapter"] == f"the best seed in runs/mnli-{preset}-{name}"
    expected = {
        ("paper", "roberta-base"): (32, 80, 5e-4, 0.06, 0.1, 6240, False),
        ("scripts", "roberta-base"): (256, 80, 5e-4, 0.06, 0.1, 800, False),
        ("paper", "deberta-v2-xxlarge"): (4, 11, 2e-4, 0.1, 0.01, 6853, False),
        ("scripts", "deberta-v2-xxlarge"): (32, 11, 2.6e-4, 50, 0.01, 858, True),
    }[preset, name]
    told = stages[1]["trainer"]
    batch = told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] * stages[1]["devices"]
    got = (batch, told["num_train_epochs"], told["learning_rate"], told["warmup_steps"], told["weight_decay"])
    assert (*got, stages[1]["steps"], told["fp16"]) == expected


def test_a_dry_run_without_a_preset_tells_the_defaults(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "m", "--data", str(reviews / "train.tsv"), "--dry-run"]) == 0
    (stage,) = yaml.safe_load(capsys.readouterr().out)["would_train"]
    assert (stage["training_rows"], stage["steps"], stage["reported_by_the_paper"]) == (None, None, None)
    assert stage["trainer"]["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "papers"], "--preset papers: must be one of paper, scripts"),
        (["--preset", "paper", "--method", "full"], "is a recipe for LoRA"),
        (["--preset", "paper", "--task", "wnli"], "got wnli"),
        (["--preset", "paper", "--model", "bert"], "bert is none of them"),
        (["--preset", "paper", "--data", "d.tsv"], "Give either --task"),
        (["--seeds", "0"], "--seeds 0: must be positive"),
        (["--preset", "scripts", "--model", "deberta-v2-xxlarge"], "fp16=True: needs a GPU"),
    ],
)
def test_wrong_words_end_with_code_2_and_one_sentence(
    glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    common = ["train", "--task", "mnli", "--model", "roberta-base", "--data-dir", str(glue), "--output", str(tmp_path / "run")]
    assert main([*common, *more]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "run").exists()
