"""The performance page shows what was recorded: its figure, and its table of whole models."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # `benchmarks` is not a part of what is installed

from benchmarks import provenance, summary  # noqa: E402
from benchmarks.harness import OURS  # noqa: E402
from benchmarks.peers import LEGACY, PEFT  # noqa: E402
from benchmarks.whole_model import ONEDNN  # noqa: E402

PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
NOT_MEASURED = "\u2013"
DTYPES = {"mixed": "bfloat16 base, float32 factors"}


@pytest.fixture
def rows():
    return provenance.read_rows(summary.SOURCE)


def shown(ratio):
    """A ratio as the page shows it; `NOT_MEASURED` as it is, None as a failure."""
    return ratio if ratio == NOT_MEASURED else "fails" if ratio is None else f"{ratio:.2f}"


def test_the_table_of_whole_models_is_the_recorded_one(rows):
    cases = {}
    for row in rows:
        cases.setdefault((row["shape"], row["layers"], row["d"], row["r"], row["dtype"], row["p"]), {})[row["contender"]] = row[
            "ratio"
        ]
    lines = []
    for (shape, layers, d, r, dtype, p), ratios in cases.items():
        model = "" if p else f"{shape}-shaped, {layers} \u00d7 {d}, r = {r}, {DTYPES.get(dtype, dtype)}"
        cells = [shown(ratios.get(name, NOT_MEASURED)) for name in (LEGACY, PEFT, OURS, ONEDNN)]
        lines.append(f"| {' | '.join([model, f'{p:g}', *cells])} |")
    assert len(lines) == 12
    assert "\n".join(lines) in PAGE


def test_the_figure_shows_each_ratio_and_names_what_failed(rows, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(summary.figures, "write", lambda figure, path: (figure.savefig(path), drawn.append(figure)))
    summary.plot(rows, tmp_path / "step.png")
    (figure,) = drawn
    for axes, p in zip(figure.axes, summary.TITLES, strict=True):
        shown = [row for row in rows if row["p"] == p and row["contender"] in summary.STYLES]
        marks = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == "None")
        assert marks == sorted(row["ratio"] for row in shown if row["ratio"] is not None)
        failed = [row["contender"] for row in shown if row["ratio"] is None]
        assert [text.get_text() for text in axes.texts] == [f"{name} fails" for name in failed] != []
    assert figure.get_supxlabel().startswith("time of a training step / time of the same model frozen")
