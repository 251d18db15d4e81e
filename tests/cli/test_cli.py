"""The command line: exit codes, one-sentence errors, and what Ctrl-C and a full disk leave behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loralib import cli
from loralib.cli import COMMANDS, main
from loralib.train.checkpoints import last_whole_checkpoint

pytest_plugins = ["recipes.conftest"]


def words(encoder: Path, reviews: Path, output: Path, *more: str) -> list[str]:
    data = ["--data", str(reviews / "train.tsv"), "--eval-data", str(reviews / "test.tsv")]
    return ["train", "--model", str(encoder), *data, "--output", str(output), "--target-modules", "all-linear", *more]


@pytest.fixture(scope="module")
def finished_run(encoder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert (
        main(words(encoder, reviews, folder, "--num-train-epochs", "4", "--learning-rate", "2e-2", "--batch-size", "16")) == 0
    )
    return folder


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom loralib.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'transformers', 'jsonargparse', 'rich', 'numpy'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(name in shown and summary.split(":")[0] in shown for name, summary in COMMANDS.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_needs_no_torch(command: str) -> None:
    script = (
        f"import sys\nfrom loralib.cli import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert (
        "usage: loralib " + command
        in subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    )


def test_train_prints_the_table_and_what_it_wrote(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(encoder, reviews, tmp_path / "run", "--num-train-epochs", "1")) == 0
    shown = capsys.readouterr()
    for word in ("method", "trained", "share", "accuracy", "time", "memory", "disk", str(tmp_path / "run"), "adapter/"):
        assert word in shown.out
    assert shown.out.startswith(f"Loading libraries, data and {encoder}")
    assert "epoch 1/1" in shown.err


def test_a_config_file_gives_options_and_words_override_it(
    encoder: Path, reviews: Path, tmp_path: Path, finished_run: Path
) -> None:
    config = tmp_path / "config.yaml"
    nested = "lora:\n  r: 2\n  target_modules: [query]\n"
    config.write_text(f"model: {encoder}\ndata: {reviews}/train.tsv\nnum_train_epochs: 3\n{nested}")
    assert main(["train", "--config", str(config), "--num-train-epochs", "1", "--output", str(tmp_path / "run")]) == 0
    resolved = (tmp_path / "run" / "config.yaml").read_text()
    assert "num_train_epochs: 1" in resolved
    assert "r: 2" in resolved
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == ["blame", "praise"]
    again = str(tmp_path / "run" / "config.yaml")
    assert main(["train", "--config", again, "--overwrite", "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "config.yaml").read_text() == resolved


def test_evaluate_gives_the_metrics_of_the_run(finished_run: Path, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(finished_run), "--data", str(reviews / "test.tsv"), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    measured = json.loads((finished_run / "metrics.json").read_text())
    assert got["rows"] == 48
    assert got["accuracy"] == pytest.approx(measured["value"])
    assert main(["evaluate", str(finished_run), "--data", str(reviews / "test.tsv")]) == 0
    assert f"{got['accuracy']:.4f}" in capsys.readouterr().out


def standard_input(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="ascii")


def test_predict_takes_words_or_standard_input(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    assert main(["predict", str(finished_run), "--json", ":smile: a\ttab \x1b[31m"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == ":smile: a\ttab \x1b[31m"
    assert main(["predict", str(finished_run), ":smile: a\ttab \x1b[31m"]) == 0
    assert capsys.readouterr().out.endswith("  :smile: a\\ttab \\x1b[31m\n")
    monkeypatch.setattr("sys.stdin", standard_input("a very dull poor film\n\ncafé good\n".encode()))
    assert main(["predict", str(finished_run), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["a very dull poor film", "", "café good"]
    assert {line["prediction"] for line in lines} <= {"praise", "blame"}


@pytest.mark.parametrize(("content", "message"), [(b"", "no text to classify"), (b"caf\xe9\n", "not UTF-8")])
def test_predict_refuses_nothing_and_what_is_no_text(
    finished_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    message: str,
) -> None:
    monkeypatch.setattr("sys.stdin", standard_input(content))
    assert main(["predict", str(finished_run)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--r", "0"], "r=0: the rank must be"),
        (["--r", "1.5"], "--r: '1.5' is not a whole number"),
        (["--lora-alpha", "-1"], "lora_alpha=-1.0"),
        (["--lora-dropout", "1"], "lora_dropout=1.0"),
        (["--metod", "lora"], "no option --metod; nearest: --method;"),
        (["--method", "loar"], "one of lora, last-layers, full, bitfit, prefix; nearest: lora"),
        (["--model", "no/such-model"], "no/such-model"),
        (["--data", "none.tsv"], "does not exist"),
        (["--text-column", "txt"], "no column 'txt'"),
        (["--target-modules", "qeury"], "query (2 layers)"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--resume", "--overwrite"], "contradict"),
        (["--resume"], "is not a run folder"),
    ],
)
def test_wrong_words_end_with_code_2_and_one_sentence(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(encoder, reviews, tmp_path / "run", *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("loralib: ")
    assert shown.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_used_output_folder_asks_for_overwrite_or_resume(
    encoder: Path, reviews: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(encoder, reviews, finished_run)) == 2
    shown = capsys.readouterr().err
    assert "--overwrite" in shown
    assert "--resume" in shown


def test_a_resumed_run_keeps_its_options(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for epochs in ("9", "3"):  # 3 is the default
        assert main(["train", "--output", str(finished_run), "--resume", "--num-train-epochs", epochs]) == 2
        assert "--num-train-epochs is 4" in capsys.readouterr().err


def test_an_unknown_command_and_an_unknown_run_end_with_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["tarin"]) == 2
    assert "nearest: train" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "text"]) == 2
    assert main(["evaluate", str(tmp_path), "--data", "x.tsv"]) == 2
    assert capsys.readouterr().err.count("is not a run folder") == 2
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "transformers"])
def test_a_missing_package_is_named_before_anything_is_done(encoder: Path, reviews: Path, tmp_path: Path, package: str) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from loralib.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = words(encoder, reviews, tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"'{package}" in done.stderr
    assert "train,eval,plot" in done.stderr
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is not a run folder"):
        main(["predict", str(tmp_path), "text", "--debug"])


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "loralib", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_a_whole_checkpoint_from_which_resume_goes_on(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(words(encoder, reviews, folder, "--num-train-epochs", "30", "--best-epoch", "false"))
    checkpoints = folder / "checkpoints"
    deadline = time.monotonic() + 600
    while last_whole_checkpoint(checkpoints) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=600)
    assert process.returncode == 130
    assert f"Go on with: loralib train --output {folder} --resume" in shown
    assert "Traceback" not in shown
    whole = last_whole_checkpoint(checkpoints)
    assert whole is not None
    assert str(whole) in shown
    assert main(["train", "--output", str(folder), "--resume", "--num-train-epochs", "30", "--debug"]) == 0
    history = json.loads((folder / "metrics.json").read_text())["history"]
    steps = [row["step"] for row in history if "eval_loss" in row]
    assert steps == sorted(set(steps))
    assert len(steps) == 30


@pytest.mark.slow
def test_two_processes_share_a_run(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    """The global batch stays what it was, one process writes, and one table is printed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "loralib"]
    arguments = words(encoder, reviews, tmp_path / "run", "--num-train-epochs", "2", "--batch-size", "16")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("memory") == 1
    assert done.stderr.count("epoch 2/2") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 2 * 192 / 16
    whole = last_whole_checkpoint(tmp_path / "run" / "checkpoints")
    assert whole is not None
    assert len(list(whole.glob("rng_state_*.pth"))) == 2


@pytest.mark.slow
def test_a_full_disk_is_reported_with_the_path(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    folder = tmp_path / "run"
    limit = 4000
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from loralib.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *words(encoder, reviews, folder, "--num-train-epochs", "1")]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    shown = process.stderr
    assert process.returncode == 1
    assert str(folder) in shown
    assert "Traceback" not in shown
    assert not folder.exists()


def test_of_several_processes_the_first_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one waits, as its end would end the first before that has spoken; what is wrong with it alone it says itself."""
    waited: list[float] = []
    monkeypatch.setattr("loralib.cli.time.sleep", waited.append)
    for rank, expected in (("0", "loralib: no."), ("1", "loralib (process 1): no.")):
        monkeypatch.setenv("RANK", rank)
        assert cli.complain("no.", cli.FAILED) == cli.FAILED
        assert capsys.readouterr().err == f"{expected}\n"
    assert waited == [cli.PATIENCE]

    def end(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loralib.cli.time.sleep", end)
    assert cli.complain("no.", cli.FAILED) == cli.FAILED
    assert cli.complain("interrupted.", cli.INTERRUPTED) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""
