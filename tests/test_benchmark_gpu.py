"""`benchmarks gpu` runs where there is no GPU, and each of its checks sees an operation that is wrong."""

import csv
import itertools
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import loralib as lora
from loralib import ops
from loralib.adapters.adapter import Adapter
from loralib.ops import autograd, dispatch, reference
from loralib.ops.autograd import dropout

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # `benchmarks` is not a part of what is installed

from benchmarks.gpu import __main__, behaviour, exactness, speed  # noqa: E402
from benchmarks.gpu.setting import NotHereError, Setting, run  # noqa: E402
from benchmarks.harness import Contender  # noqa: E402

# PEFT 0.21 uses names that transformers 5 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


def setting(seconds: float = 600.0) -> Setting:
    return Setting("cpu", True, time.monotonic() + seconds)


def fails(check) -> bool:
    """Whether a check finds something."""
    return any(row["passed"] is False for rows in run({"it": check}, setting(), lambda part: None) for row in rows)


def off_by_a_hundredth(operation):
    return lambda *args, **kwargs: operation(*args, **kwargs) * 1.01


def half_written(operation):
    """Leaves part of its result as it finds it."""

    def computed(*args, **kwargs):
        y = operation(*args, **kwargs)
        return y + 0 * torch.empty(y.shape, dtype=y.dtype)

    return computed


@pytest.mark.parametrize("wrong", [off_by_a_hundredth, half_written])
@pytest.mark.parametrize(
    ("check", "name"),
    [
        (exactness.linear, "lora_linear"),
        (exactness.dropped, "lora_linear"),
        (exactness.slices, "lora_linear"),
        (exactness.slices, "add_linear_update"),
        (exactness.embedding, "add_embedding_update"),
        (exactness.convolution, "lora_convolution"),
        (exactness.strips, "add_strips"),
    ],
)
def test_a_wrong_operation_is_found(check, name, wrong, monkeypatch):
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(autograd, name, wrong(getattr(autograd, name)))
    assert fails(check)


def test_a_wrong_operation_under_autocast_is_found(monkeypatch):
    operation = autograd.lora_linear
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(autograd, "lora_linear", lambda *args, **kwargs: operation(*args, **kwargs) * 1.05)
    assert fails(behaviour.autocast)


def test_a_gradient_that_sees_other_dropout_is_found(monkeypatch):
    monkeypatch.setattr(dispatch, "SMALL", 0)
    places = dropout.places
    monkeypatch.setattr(dropout, "places", lambda kept: None if kept is None else places(kept).roll(1, 0))
    assert fails(exactness.dropped)


@pytest.mark.parametrize("fault", ["too much", "the same in each draw", "pairs"])
def test_dropout_of_another_distribution_is_found(fault, monkeypatch):
    monkeypatch.setattr(dispatch, "SMALL", 0)

    def draw(x, p, generator=None):
        if fault == "the same in each draw":
            generator = torch.Generator().manual_seed(1)
        mask = torch.rand(x.shape, generator=generator) < (1.3 * p if fault == "too much" else p)
        if fault == "pairs":
            mask[:, 1::2] = mask[:, ::2]
        return mask, mask

    monkeypatch.setattr(dropout, "draw", draw)
    assert fails(exactness.dropout)


def test_wrong_merging_is_found(monkeypatch):
    merge, unmerge = lora.merge, lora.unmerge
    with monkeypatch.context() as context:
        context.setattr(lora, "merge", lambda model: None)
        assert fails(behaviour.merging)

    def unmerge_roughly(model):
        unmerge(model)
        with torch.no_grad():
            model[0].weight.add_(1e-3)

    monkeypatch.setattr(lora, "unmerge", unmerge_roughly)
    assert lora.merge is merge
    assert fails(behaviour.merging)


def test_dropout_that_a_checkpoint_draws_anew_is_found(monkeypatch):
    own, draw = torch.Generator().manual_seed(0), dropout.draw
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(dropout, "draw", lambda x, p, generator=None: draw(x, p, own))
    assert fails(behaviour.checkpointing)


@pytest.mark.slow
@pytest.mark.skipif(not behaviour.has_compiler(), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
def test_what_a_compiler_gets_wrong_is_found(monkeypatch):
    def forgetful(y, t, B, scaling):
        return y + torch.nn.functional.linear(t, B) * (1 if torch.compiler.is_compiling() else scaling)

    monkeypatch.setattr(reference, "add_expanded", forgetful)
    torch._dynamo.reset()
    assert fails(behaviour.compiled)


def test_an_adapter_that_changes_on_its_way_is_found(monkeypatch):
    to = Adapter.to
    monkeypatch.setattr(Adapter, "to", lambda self, **where: 0.5 * to(self, **where))
    assert fails(behaviour.moving)


def test_checks_of_a_gpu_say_that_they_need_one():
    for check in (behaviour.waiting, behaviour.graphs, behaviour.great):
        ((row,),) = run({"it": check}, setting(), lambda part: None)
        assert (row["passed"], row["note"]) == (None, "needs CUDA")


class Pretending(Setting):
    """A CPU that is taken for a GPU."""

    def need_cuda(self) -> None: ...

    def free_bytes(self) -> int:
        return 1 << 40


def rows_of(check) -> list:
    found = run({"it": check}, Pretending("cpu", True, time.monotonic() + 600), lambda part: None)
    return [row for rows in found for row in rows]


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_that_waits_is_found(waits, monkeypatch):
    @contextmanager
    def no_waiting():
        def item(tensor):
            raise RuntimeError("called a synchronizing operation")

        with monkeypatch.context() as context:
            context.setattr(torch.Tensor, "__int__", item)
            yield

    monkeypatch.setattr(behaviour, "no_waiting", no_waiting)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(dropout, "FEW", 0 if waits else 1 << 60)  # gaps, which are read, or a mask
    found = {row["case"]: row["passed"] for row in rows_of(behaviour.waiting)}
    assert found == dict.fromkeys(found, not waits) | {"embedding, autograd": True}
    assert len(found) == 5


@pytest.mark.parametrize("fault", ["", "is not replayed", "replays old dropout"])
def test_graphs_that_do_not_replay_are_found(fault, monkeypatch):
    def captured(step):
        results = step()
        state = torch.get_rng_state()

        def replay():
            if fault == "replays old dropout":
                torch.set_rng_state(state)
            for result, fresh in zip(results, step(), strict=True):
                if fault != "is not replayed":
                    result.copy_(fresh)

        return replay, results

    monkeypatch.setattr(behaviour, "captured", captured)
    passed = {row["case"]: row["passed"] for row in rows_of(behaviour.graphs)}
    assert len(passed) == 6
    assert passed["fresh dropout, autograd"] is (not fault)
    assert passed["linear, autograd"] is (fault != "is not replayed")


@pytest.mark.parametrize("operation", [None, off_by_a_hundredth])
def test_great_sizes_are_compared(operation, monkeypatch):
    monkeypatch.setattr(behaviour, "GREAT", 4096 * 300)
    if operation:
        monkeypatch.setattr(autograd, "lora_linear", lambda *args, **how: 1.1 * dispatch.reference.lora_linear(*args[:8]))
    monkeypatch.setattr(behaviour, "mask_of", lambda implementation, x, p, seed: (torch.rand(x.shape) >= p).float())
    found = [row["passed"] for row in rows_of(behaviour.great)]
    assert len(found) == 5
    assert all(found) is (operation is None)


def test_values_that_are_not_close_are_found():
    one = [torch.ones(3)]
    assert behaviour.close(one, one, 0.0)["passed"]
    assert not behaviour.close([torch.full((3,), 1.1)], one, 0.09)["passed"]
    assert not behaviour.close([torch.full((3,), torch.nan)], one, 1.0)["passed"]
    assert not exactness.compare([torch.ones(3)], [torch.ones(3).half()], [torch.ones(3).double()], 1.0)["passed"]
    assert not behaviour.said("it", False, "why")["passed"]


# --- parts -------------------------------------------------------------------------------------------------------------


def test_a_part_that_breaks_off_keeps_its_rows_and_the_others_run():
    def lacking(setting):
        yield {"case": "first", "passed": True}
        raise NotHereError("needs 9 GB, and 1 are free")

    def breaking(setting):
        yield {"case": "first", "passed": True}
        raise ValueError("a\nb")

    def too_large(setting):
        yield {"case": "first", "passed": True}
        raise torch.OutOfMemoryError

    found = list(run({"lacking": lacking, "breaking": breaking, "too large": too_large}, setting(), lambda part: None))
    last = [(rows[-1]["part"], len(rows), rows[-1]["passed"], rows[-1]["note"]) for rows in found]
    assert last == [
        ("lacking", 2, None, "needs 9 GB, and 1 are free"),
        ("breaking", 2, False, "ValueError: a"),
        ("too large", 2, None, "out of memory"),
    ]


@pytest.mark.parametrize("who", ["PEFT", "loralib"])
def test_a_contender_that_runs_out_of_memory_is_a_row(who):
    def too_much():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    done = {"frozen": Contender(lambda: None), "PEFT": Contender(lambda: None), "loralib": Contender(lambda: None)}
    case = speed.Linear(8, 16, 16, 2, 0.0, "mixed")
    rows = speed.measured(setting(), case, done | {who: Contender(too_much)}, memory=False)
    (row,) = [row for row in rows if row["contender"] == who]
    assert "out of memory" in row["note"]
    assert row["passed"] is None
    assert "out of memory" in speed.table([{"part": "linear", **row} for row in rows])


def test_a_card_with_little_memory_skips_by_name():
    class Small(Pretending):
        def free_bytes(self) -> int:
            return 10**9

    ((*_, row),) = run({"great": behaviour.great}, Small("cpu", False, time.monotonic() + 600), lambda part: None)
    assert (row["passed"], row["note"]) == (None, "needs 40 GB, and 1 are free")


def test_nothing_begins_when_the_time_is_up():
    def endless(setting):
        for i in itertools.count():
            yield {"case": str(i), "passed": True}

    rows = list(run({"endless": endless, "next": endless}, setting(0.05), lambda part: None))
    assert rows[0][-1]["note"] == "the time was up before the end of this part"
    assert [row["note"] for row in rows[1]] == ["no time was left"]


def test_goals_are_computed_from_rows():
    row = {"part": "linear", "dtype": "mixed", "d": 4096, "k": 4096, "r": 8, "p": 0.05, "contender": "loralib", "ratio": 1.1}
    row |= {"speedup": 1.0, "passed": None}
    theirs = row | {"contender": "PEFT", "ratio": 2.2, "speedup": 2.0}
    checks = [
        {"part": "CUDA graphs", "passed": True},
        {"part": "linear", "passed": False},
        {"part": "compiled", "passed": None},
    ]
    found = {(goal.name, goal.figure) for goal in speed.goals([row, theirs], checks)}
    assert found >= {("G14", 1.1), ("G14", 2.0), ("G16", 1.0), ("G17", 0.5)}
    assert not any(goal.met for goal in speed.goals([], []))


def test_a_failed_check_is_the_exit_code_and_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    checks = {
        "good": lambda setting: iter([{"case": "a", "passed": True}]),
        "bad": lambda setting: iter([{"case": "b", "passed": False, "error": 2.0, "allowed": 1.0}]),
    }
    monkeypatch.setattr(__main__, "CHECKS", checks)
    words = ["--device", "cpu", "--tiny", "--checks", "--out", str(tmp_path)]
    assert __main__.main(words) == 1
    assert "FAILED: b: error 2, allowed 1" in capsys.readouterr().out
    with (tmp_path / "gpu_checks.csv").open() as file:
        assert [row["passed"] for row in csv.DictReader(file)] == ["True", "False"]
    del checks["bad"]
    assert __main__.main(words) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_it_says_so(capsys):
    assert __main__.main([]) == 2
    assert "sees no CUDA device; run it where one is, or try" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu(tmp_path):
    words = ["-W", "error", "-m", "benchmarks", "gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.stem for path in tmp_path.iterdir()} == {"gpu_checks", *(f"gpu_{n.replace(' ', '_')}" for n in speed.PARTS)}
    with (tmp_path / "gpu_checks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {*__main__.CHECKS}
    assert sum("triton" in row["case"] for row in rows) > 50
    assert all(row["passed"] in ("True", "") for row in rows)


def test_each_linear_layer_is_computed_by_who_is_named():
    tensors = exactness.drawn(setting(), (3,), 4, 5, 2, exactness.DTYPES["float32"])
    seen = []

    def operation(*given):
        seen.append(dispatch._forced.get())
        return ops.lora_linear(*given, 1.0)

    exactness.by("autograd", operation)(*tensors.values())
    assert seen == ["autograd"]
