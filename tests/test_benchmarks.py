"""The harness of the benchmarks measures what it says, and every benchmark runs."""

import csv
import math
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import loralib

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # `benchmarks` is not a part of what is installed

from benchmarks import command, goals, harness, merge_checkpoint, peers, provenance, report  # noqa: E402
from benchmarks.harness import BEFORE, OURS, Case, Contender, Effort, Options  # noqa: E402

# PEFT 0.21 uses names that transformers 5 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

SMALLEST = Options(effort=Effort(rounds=2, seconds=0, measurement=0))


class Pair(Case):
    group_title, case_title = "pairs", "a pair"


def pair(**contenders: Contender) -> list[harness.Row]:
    return harness.rows(Pair(), {name.replace("ours", OURS): c for name, c in contenders.items()}, SMALLEST)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of what is here, which stands for an earlier version."""
    path, source = tmp_path_factory.mktemp("wheel") / "loralib-1.0-py3-none-any.whl", Path(loralib.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        for file in source.rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                archive.write(file, file.relative_to(source.parent))
    return path


class Clock:
    """A clock that only the work of contenders moves."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    return clock


# --- time -----------------------------------------------------------------------------------------------------------


def test_contenders_alternate_and_their_order_changes():
    called: list[str] = []
    contenders = {name: Contender(lambda name=name: called.append(name)) for name in "abc"}
    taken = harness.alternate(contenders, {"a": 1, "b": 2, "c": 1}, Effort(rounds=20, seconds=0), "cpu")
    rounds = [called[i : i + 4] for i in range(0, 80, 4)]
    assert [sorted(each) for each in rounds] == [["a", "b", "b", "c"]] * 20
    assert all(each.index("b") + 1 == len(each) - each[::-1].index("b") - 1 for each in rounds)
    assert len({tuple(each) for each in rounds}) > 3
    assert {name: len(values) for name, values in taken.items()} == dict.fromkeys("abc", 20)


def test_what_sleeps_longer_is_slower():
    sleeping = {"slow": Contender(lambda: time.sleep(0.02)), OURS: Contender(lambda: time.sleep(0.005))}
    slow, fast = harness.rows(Pair(), sleeping, Options(effort=Effort(rounds=7, seconds=0)), memory=False)
    assert 2 < 1 / fast["ratio"] < 8
    assert 2 < slow["speedup"] < 8
    assert slow["ratio"] == fast["speedup"] == 1
    assert fast["ratio_20"] <= fast["ratio"] <= fast["ratio_80"]


@pytest.mark.parametrize(("effort", "rounds"), [(Effort(2, 10.0), 10), (Effort(15, 10.0), 15)])
def test_a_case_lasts_for_its_seconds_and_its_rounds(clock, effort, rounds):
    contenders = {"a": Contender(lambda: clock.work(0.75)), "b": Contender(lambda: clock.work(0.25))}
    assert harness.alternate(contenders, {"a": 1, "b": 1}, effort, "cpu") == {"a": [0.75] * rounds, "b": [0.25] * rounds}


def test_short_calls_are_measured_together(clock):
    short = Contender(lambda: clock.work(1 / 1024))
    assert harness.enough_calls(short, 0.01, 4 / 1024, "cpu") == 4
    assert harness.enough_calls(short, harness.LONG, 1.0, "cpu") == 1
    assert harness.alternate({"a": short}, {"a": 4}, Effort(3, 0), "cpu") == {"a": [1 / 1024] * 3}


def test_what_is_prepared_is_not_measured_and_used_once(clock):
    made: list[object] = []
    seen: list[object] = []

    def prepare() -> tuple[object]:
        clock.work(1.0)
        made.append(object())
        return (made[-1],)

    def run(thing: object) -> None:
        clock.work(0.5)
        seen.append(thing)

    assert harness.seconds(Contender(run, prepare=prepare), 3, "cpu") == 1.5
    assert seen == made


def test_the_spread_is_that_of_the_ratios():
    assert harness.spread("ratio", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"ratio": 3.5, "ratio_20": 2.0, "ratio_80": 5.0}


def test_a_peer_that_fails_is_a_note_and_ours_must_not_fail():
    def fail() -> None:
        raise RuntimeError("two dtypes\nand more")

    good, bad = Contender(lambda: None), Contender(fail)
    _, failed, ours = pair(reference=good, peer=bad, ours=good)
    assert (failed["note"], failed["milliseconds"], failed["ratio"]) == ("two dtypes", None, None)
    assert ours["note"] == ""
    with pytest.raises(RuntimeError, match="loralib: two dtypes"):
        pair(reference=good, ours=bad)


def test_the_reference_arithmetic_is_measured_when_asked_for(monkeypatch):
    used: list[str] = []

    @contextmanager
    def use(name: str) -> Iterator[None]:
        used.append(name)
        yield

    monkeypatch.setattr(harness.ops, "use", use, raising=False)
    measure = harness.timed(lambda case, device, lora: {OURS: Contender(lambda: None)}, memory=False)
    rows = measure(Pair(), Options(effort=SMALLEST.effort, reference=True))
    assert [row["contender"] for row in rows] == [OURS, harness.REFERENCE_OPS]
    assert set(used) == {"reference"}


# --- memory ---------------------------------------------------------------------------------------------------------


def test_saved_bytes_are_exact():
    layer = nn.Linear(8, 16)  # keeps its input, and its weight, which is the model's
    x = torch.randn(4, 8, requires_grad=True)
    assert harness.saved_bytes(Contender(lambda: layer(x), layer)) == 4 * 8 * 4
    assert harness.saved_bytes(Contender(lambda: layer(x))) == 4 * 8 * 4 + 8 * 16 * 4
    assert harness.saved_bytes(Contender(lambda: layer(x).sigmoid().sum().backward(), layer)) == 4 * 8 * 4 + 4 * 16 * 4
    assert harness.saved_bytes(Contender(lambda: layer.requires_grad_(False)(x), layer)) == 0


def test_a_storage_is_counted_once_and_whole():
    x, y = torch.randn(2, 10, 10).unbind()
    x, y = x.clone().requires_grad_(), y.clone()
    assert harness.saved_bytes(Contender(lambda: (x * y, x[0] * y[0], x[1] * y[0]))) == 400
    assert harness.saved_bytes(Contender(lambda: x[0] * y[0])) == 400


def test_saved_tensors_are_what_they_were():
    x = torch.randn(3, requires_grad=True)
    harness.saved_bytes(Contender(lambda: x.exp().sum().backward()))
    assert torch.equal(x.grad, x.detach().exp())


def test_peak_bytes_are_exact_and_the_same_every_time():
    x = torch.zeros(1000)
    contender = Contender(lambda: x.neg().neg().neg())
    assert [harness.peak_bytes(contender, "cpu") for _ in range(3)] == [8000] * 3
    assert harness.peak_bytes(Contender(lambda: [x.neg() for _ in range(5)]), "cpu") == 5 * 4000


# --- goals ----------------------------------------------------------------------------------------------------------


def row(case: str, contender: str, ratio: float | None, speedup: float | None = None) -> harness.Row:
    return {"group": "", "case": case, "contender": contender, "ratio": ratio, "speedup": speedup}


ROWS = [
    *(row("a", "peer", 1.4, 1.4 / 1.1), row("a", "other", 1.2, 1.2 / 1.1), row("a", OURS, 1.1, 1.0)),
    *(row("b", "peer", 1.6, 1.6 / 1.1), row("b", "other", None), row("b", OURS, 1.1, 1.0)),
]


def test_figures_of_goals():
    assert goals.slowest_mean(ROWS, ["peer"]) == pytest.approx(math.sqrt(1.4 * 1.6) / 1.1)
    assert goals.slowest_mean(ROWS, ["peer", "other"]) == pytest.approx(1.2 / 1.1)
    assert goals.worst(ROWS, "speedup", ["peer", "other"], min) == pytest.approx(1.2 / 1.1)
    assert goals.overhead_share(ROWS, ["peer", "other"]) == pytest.approx(0.1 / (math.sqrt(1.2 * 1.6) - 1))
    assert goals.where(ROWS, case="a", ratio=lambda ratio: ratio > 1.3) == ROWS[:1]
    assert (
        goals.worst([], "speedup", ["peer"]) is goals.slowest_mean([], ["peer"]) is goals.overhead_share([], ["peer"]) is None
    )


@pytest.mark.parametrize(
    ("goal", "met", "words"),
    [
        (goals.Goal("G0", "time", 1.2, at_most=1.2), True, "G0   time: 1.2 (goal ≤ 1.2) met"),
        (goals.Goal("G0", "speed", 1.2, at_least=2), False, "G0   speed: 1.2 (goal ≥ 2) NOT MET"),
        (goals.Goal("G0", "speed", None, at_least=2), None, "G0   speed: not measured (goal ≥ 2) "),
        (goals.Goal("", "speed", 1.25), None, "—    speed: 1.25"),
    ],
)
def test_a_goal_says_whether_it_is_met(goal, met, words):
    assert (goal.met, str(goal)) == (met, words)


# --- every benchmark ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_runs_and_is_written_down(name, wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    rows = benchmark.measure(benchmark.smallest, replace(SMALLEST, before=peers.loralib_before(wheel)))
    assert {row["contender"] for row in rows} >= {OURS, BEFORE}
    assert not any(row.get("note") for row in rows if row["contender"] == BEFORE)
    assert all(goal.claim and str(goal) for goal in benchmark.goals(rows))
    origin = provenance.provenance("cpu")
    with provenance.write_rows(name, rows, origin).open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert {key: written[0][key] for key in origin} == origin
    assert {"device", "torch", "loralib", "peft", "commit", "date"} <= origin.keys()
    assert report.table(benchmark, rows, name).row_count == len(rows)
    report.plot(benchmark, rows, tmp_path / f"{name}.png", name)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("name", command.NAMES)
def test_cases_have_titles_of_their_own(name):
    benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    for cases in (benchmark.cases, benchmark.quick):
        assert len({(case.group, case.label) for case in cases}) == len(cases) > 0


def test_peers_compute_what_we_do():
    layer = nn.Linear(6, 4).requires_grad_(False)
    options = {"r": 2, "lora_alpha": 3}
    models = [peers.ours(loralib, layer, **options), peers.peft_layer(layer, **options)]
    models.append(peers.legacy("Linear", layer, 6, 4, **options))
    for model in models:
        factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert len(factors) == 2
        for factor in factors:
            factor.data.copy_(torch.arange(factor.numel()).view_as(factor) / 7)
    x = torch.randn(3, 6, requires_grad=True)
    outputs = [model(x) for model in models[1:]]
    torch.testing.assert_close(outputs, [models[0](x)] * 2)
    assert not torch.allclose(outputs[0], layer(x))


# --- an earlier version ---------------------------------------------------------------------------------------------


def test_an_earlier_version_is_another_package_that_does_the_same(wheel):
    old = peers.loralib_before(wheel)
    assert old is not loralib
    assert old.ops.use is not loralib.ops.use
    layer = nn.Linear(6, 4).requires_grad_(False)
    x = torch.randn(3, 6)
    outputs = []
    for lora in (old, loralib):
        torch.manual_seed(1)
        model = peers.ours(lora, layer, r=2)
        assert isinstance(model[0], lora.Linear)
        with lora.ops.use("reference"):
            outputs.append(model(x))
        lora.merge(model)
        torch.testing.assert_close(model(x), outputs[-1])
    assert not isinstance(model[0], old.Linear)
    assert torch.equal(*outputs)


def test_an_earlier_version_gets_the_random_numbers_and_names_of_ours(wheel):
    drawn = {}

    def build(case: Case, device: str, lora: object) -> dict[str, Contender]:
        drawn[lora] = torch.rand(1)
        names = ("peer", peers.LEGACY, OURS, f"{OURS}, merged")
        return {name: Contender(lambda: None) for name in names}

    old = peers.loralib_before(wheel)
    rows = harness.timed(build)(Pair(), replace(SMALLEST, before=old))
    contenders = ["peer", peers.LEGACY, OURS, f"{OURS}, merged", BEFORE, f"{BEFORE}, merged"]
    assert [row["contender"] for row in rows] == contenders
    assert [row["contender"] for row in rows if row["to_before"]] == [OURS, f"{OURS}, merged"]
    assert drawn.keys() == {old, loralib}
    assert drawn[old] == drawn[loralib]
    alone = harness.timed(build)(Pair(), replace(SMALLEST, before=old, others=False))
    assert [row["contender"] for row in alone] == ["peer", *contenders[2:]]


def test_what_an_earlier_version_cannot_do_is_a_note(wheel):
    def build(case: Case, device: str, lora: object) -> dict[str, Contender]:
        if lora is not loralib:
            raise AttributeError("there was no bank")
        return {OURS: Contender(lambda: None)}

    rows = harness.timed(build)(Pair(), replace(SMALLEST, before=peers.loralib_before(wheel)))
    assert [(row["contender"], row["note"]) for row in rows] == [(OURS, ""), (BEFORE, "there was no bank")]
    assert report.comparisons(rows) == {"the earlier version fails: there was no bank  pairs, a pair": False}


@pytest.mark.parametrize(
    ("low", "peak", "worse"), [(1.02, None, False), (1.04, None, True), (0.9, 1.0, False), (0.9, 1.5, True)]
)
def test_worse_is_what_needs_more_than_the_noise(low, peak, worse):
    figures = {"to_before": low + 0.01, "to_before_20": low, "to_before_80": 1.5, "peak_to_before": peak}
    rows = [{"group": "g", "case": "c", "contender": f"{OURS}, merged", **figures}]
    ((line, found),) = report.comparisons(rows).items()
    assert line.startswith(f"{low + 0.01:.3f}  ({low:.3f}-1.500)  g, c, merged")
    assert found == worse


@pytest.mark.slow
def test_all_benchmarks_are_compared_with_an_earlier_version(wheel, monkeypatch, capsys):
    monkeypatch.setattr(command, "NAMES", ("tiny", "fidelity"))
    monkeypatch.setattr(command, "Effort", lambda **effort: SMALLEST.effort)
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["benchmarks", "compare-before", "--quick", "--threads", threads, "--before", str(wheel)])
    command.main()
    lines = capsys.readouterr().out
    assert lines.count("4 x (16→16), r 4, dropout 0, peak memory 1.000") >= 2
    assert "orse than before by more than the noise" in lines


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tiny", "--before", "nowhere.whl"], "neither a wheel of loralib nor a folder that holds loralib/"),
        (["compare-before"], "compare-before needs --before WHEEL"),
    ],
)
def test_an_earlier_version_has_to_be_there(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(SystemExit) as stopped:
        command.arguments()
    assert stopped.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_an_unknown_name_lists_the_benchmarks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "liner"])
    with pytest.raises(SystemExit) as stopped:
        command.arguments()
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "'liner' is not a benchmark." in told
    assert all(f"  {name} " in told and len(command.description(name)) > 20 for name in command.NAMES)


@pytest.mark.slow
def test_the_merging_of_a_checkpoint_is_measured():
    row = merge_checkpoint.measured(layers=1, rounds=2, scale=64)
    assert row["layers"] == 7
    assert row["peak_bytes"] > 50e6
    assert row["ratio_20"] <= row["ratio"] <= row["ratio_80"]


def test_a_library_has_one_colour_and_each_variant_its_own_look():
    looks = report.styles(
        ["PEFT", "PEFT, low_cpu_mem_usage", "PEFT (full width)", "loralib", "loralib, oneDNN", "loralib 0.1.2"]
    )
    colours = {name: look["facecolor"] for name, look in looks.items()}
    assert len({colours[name] for name in colours if name.startswith("PEFT")}) == 1
    assert len({colours["PEFT"], colours["loralib"], colours["loralib 0.1.2"]}) == 3
    assert len({tuple(look.values()) for look in looks.values()}) == len(looks)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in command.NAMES if (provenance.RESULTS / f"{name}.csv").exists()])
def test_a_figure_is_drawn_from_the_recorded_rows_and_its_caption_fits(name, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        report.figures, "write", lambda figure, path, dpi: (figure.savefig(path, dpi=dpi), drawn.append(figure))
    )
    rows = provenance.read_rows(provenance.RESULTS / f"{name}.csv")
    benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    report.plot(benchmark, rows, tmp_path / "plot.png", command.plot_title(name, rows[0]))
    (figure,) = drawn
    box, whole = figure._supxlabel.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
