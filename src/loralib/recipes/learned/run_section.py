"""The section of the page on the run that trained an adapter: learning curves, samples and configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..figures import BLUE, GREY
from .drawings import Line, plot
from .page import Gallery, Picture, Section, Text
from .subjects import Run, Subject

_MOST = 20  # samples on a page


def run_section(subject: Subject) -> Section | None:
    """The section; None where the run is not known."""
    if (run := subject.run) is None:
        return None
    pictures = [picture for picture in (_losses(run), _scores(run)) if picture]
    texts = [Text("Answers to held-out prompts, before and after training", shown)] if (shown := _samples(run)) else []
    texts.append(Text("Configuration", run.configuration))
    kept = f", {run.metric} {run.value:.4f}" if run.metric and run.value is not None else ""
    lead = f"{run.options.method} of {run.options.model} on {run.options.data_name}, seed {run.options.seed}{kept}."
    return Section(f"Run: {subject.name}", lead, [Gallery("", pictures)] if pictures else [], texts=texts)


def _losses(run: Run) -> Picture | None:
    training, held_out = _points(run.history, "loss"), _points(run.history, "eval_loss")
    if not training and not held_out:
        return None
    lines = [Line("training loss", training, GREY), Line("evaluation loss", held_out, BLUE)]
    last = f"; the last evaluation loss is {held_out[-1][1]:.3f}" if held_out else ""
    caption = f"Loss by epoch{last}."
    return Picture(
        plot(lines, "epoch", "loss", caption, zero=True), caption, [(line.colour, line.label) for line in lines if line.points]
    )


def _scores(run: Run) -> Picture | None:
    points = _points(run.history, f"eval_{run.metric}")
    if not points:
        return None
    caption = f"{run.metric} by epoch, on the evaluation rows: from {points[0][1]:.3f} to {points[-1][1]:.3f}."
    return Picture(plot([Line(str(run.metric), points, BLUE)], "epoch", str(run.metric), caption), caption)


def _points(history: Iterable[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(float(row["epoch"]), float(row[key])) for row in history if key in row]


def _samples(run: Run) -> str:
    """The first and the last answers to each prompt, as lines; nothing where the run has no samples."""
    rows = [row["answers"] for row in run.samples if isinstance(row.get("answers"), list)]
    if not rows:
        return ""
    parts = []
    for before, after in list(zip(rows[0], rows[-1], strict=False))[:_MOST]:
        parts.append("\n".join(f"{what:<9} {_text(row, key)}" for what, row, key in _lines(before, after)))
    return "\n\n".join(parts)


def _lines(before: Any, after: Any) -> list[tuple[str, Any, str]]:
    asked = [("prompt", before, "prompt"), ("expected", before, "reference")]
    return [*asked, ("before", before, "answer"), ("after", after, "answer")]


def _text(row: Any, key: str) -> str:
    return " ".join(str(row.get(key, "")).split()) if isinstance(row, Mapping) else ""
