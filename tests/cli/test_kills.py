"""A command that is killed at any step loses nothing, leaves nothing for good, and is not in the next one's way."""

import os
from pathlib import Path
from typing import Any

import pytest

from kills import in_fresh_process
from loralib.cli import MISUSED, main
from loralib.storage.lock import file_lock, folder_lock

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="the system copies no processes")]

PROGRAM = """
import contextlib, io, shutil, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
import loralib as lora
from loralib.cli import main
from kills import kills

torch.set_num_threads(1)
root, command, there, force = Path(sys.argv[1]) / "work", sys.argv[2], sys.argv[3] == "True", sys.argv[4] == "True"
out, one, two = root / "out", Path(sys.argv[1]) / "one", Path(sys.argv[1]) / "two"
for seed, path in enumerate((one, two)):
    torch.manual_seed(seed)
    lora.save(lora.Adapter(lora.LoRAConfig(), {"x": lora.LoRAUpdate(torch.randn(2, 6), torch.randn(4, 2), 7 + seed)}), path)
base = Path(sys.argv[1]) / "base.safetensors"
save_file({"x.weight": torch.zeros(4, 6)}, base)

def words(adapter, *more):
    rest = [str(adapter), "-o", str(out), *more]
    return ["merge", str(base), *rest] if command == "merge" else ["convert", *rest, "--format", "peft"]

def run(words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(words)

def begin():
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if there:
        assert run(words(one)) == 0

def content():
    "Which of the two adapters is at OUT; an error when it is neither, or both are mixed."
    if command == "merge":
        W = load_file(out / "model.safetensors")["x.weight"]
    else:
        W = lora.load(out).delta("x")
    known = [lora.load(path).delta("x") for path in (one, two)]
    (found,) = [i for i, delta in enumerate(known) if torch.allclose(delta, W)]
    return found

begin()
run(words(two, "--overwrite"))
whole = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
count = 0
for step in kills(lambda: run(words(two, "--overwrite")), root, begin):
    files = [out / "adapter_config.json", out / "adapter_model.safetensors"]
    if command == "convert" and all(file.exists() for file in files):
        content()  # never one's configuration and the other's tensors
    code = run(words(two, *["--overwrite"] * force))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    assert names == whole, (step, names)
    assert content() in ((1,) if force or not there else (0, 1)), step
    assert code in ((0,) if force else (0, 2)), (step, code)
    assert code == 2 or content() == 1
    if there and not force:
        assert code == 2
    count += 1
print(count)
"""


@pytest.mark.parametrize("command", ["merge", "convert"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_the_next_command_finds_the_old_or_the_new_and_leaves_nothing_else(
    command: str, there: bool, force: bool, tmp_path: Path
) -> None:
    steps = int(in_fresh_process(PROGRAM, tmp_path, command, str(there), str(force)))
    assert steps > (10 if command == "merge" else 5)


@pytest.mark.parametrize("command", ["merge", "convert"])
def test_two_at_once_are_refused(command: str, tmp_path: Path, capfd: Any) -> None:
    program = PROGRAM.partition("begin()\nrun(")[0] + "begin()\n"
    in_fresh_process(program, tmp_path, command, "True", "True")
    out = tmp_path / "work" / "out"
    more = [str(tmp_path / "base.safetensors")] if command == "merge" else ["--format", "peft"]
    words = [command, *more, str(tmp_path / "two"), "-o", str(out), "--overwrite"]

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}

    before = contents()
    with file_lock(out) if command == "merge" else folder_lock(out):
        assert main(words) == MISUSED
        shown = capfd.readouterr().err
        assert shown.count("\n") == 1
        assert f"{out} is being written by process {os.getpid()} on" in shown
        assert contents() == before
    assert main(words) == 0
    assert contents() != before


@pytest.mark.parametrize("next_format", ["peft", "diffusers"])
def test_what_is_left_goes_whatever_format_comes_next(next_format: str, tmp_path: Path) -> None:
    in_fresh_process(PROGRAM.partition("begin()\nrun(")[0] + "begin()\n", tmp_path, "convert", "False", "True")
    out, gone = tmp_path / "out", "2147483647"  # no process has this number
    out.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"):
        (out / f".{name}.{gone}.tmp").touch()
    words = ["convert", str(tmp_path / "one"), "--rename", "x=unet.x", "-o", str(out), "--format", next_format]
    assert main(words) == 0
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
