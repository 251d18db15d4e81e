"""A report as files in a folder.

index.html    the page       report.json    all numbers       tables/*.csv       figures/*.svg, figures/*.png
"""

from pathlib import Path
from typing import Any

from ... import __version__
from ...analysis import Spectrum, SubspaceSimilarity, total_cosine
from ...storage.json_text import as_json
from .. import figures
from . import page, plots, tables
from .findings import findings
from .measured import Alone, Measured, Pair
from .sections import sections

PAGE, NUMBERS, TABLES, FIGURES = "index.html", "report.json", "tables", "figures"


def write(measured: Measured, folder: Path) -> dict[str, Any]:
    """Write the report into an empty folder, and return what `report.json` holds."""
    names = [alone.subject.name for alone in measured.alone]
    title = f"What {' and '.join(names)} learned" if len(names) < 3 else f"What {len(names)} adapters learned"
    (folder / PAGE).write_text(page.rendered(title, findings(measured), sections(measured)), encoding="utf-8")
    numbers = as_values(measured)
    (folder / NUMBERS).write_text(as_json(numbers, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / TABLES).mkdir()
    for table in tables.tables(measured):
        (folder / TABLES / f"{table.name}.csv").write_text(table.as_csv(), encoding="utf-8", newline="")
    (folder / FIGURES).mkdir()
    for name, figure in plots.figures(measured):
        for ending in ("svg", "png"):
            figures.write(figure, folder / FIGURES / f"{name}.{ending}")
    return numbers


def as_values(measured: Measured) -> dict[str, Any]:
    """All numbers and the sentences of the summary, as plain values."""
    return {
        "loralib": __version__,
        "of": measured.of,
        "base": measured.base,
        "findings": {found.about: list(found.sentences) for found in findings(measured)},
        "adapters": {alone.subject.name: _alone(alone) for alone in measured.alone},
        "pairs": [_pair(pair) for pair in measured.pairs],
    }


def _alone(alone: Alone) -> dict[str, Any]:
    subject = alone.subject
    return {
        "path": str(subject.path),
        "digest": subject.adapter.digest(),
        "run": str(subject.run.folder) if subject.run else None,
        "seed": subject.seed,
        "spectra": {name: _spectrum(found) for name, found in alone.spectra.items()},
        "amplification": {
            name: {
                **vars(found),
                "overlap": _by_share(found.overlap),
                "chance": _by_share(found.chance),
                "factor": found.factor,
            }
            for name, found in alone.amplification.items()
        },
        "intruders": {name: [vars(intruder) for intruder in found] for name, found in alone.intruders.items()},
    }


def _by_share(values: Any) -> dict[str, float]:
    return {f"{share:g}": value for share, value in values.items()}


def _spectrum(found: Spectrum) -> dict[str, Any]:
    known = found.values is not None
    return {
        "r": found.r,
        "lora_alpha": found.lora_alpha,
        "norm": found.norm,
        "stable_rank": found.stable_rank,
        "effective_rank": found.effective_rank,
        "rank_at": {"0.9": found.rank_at(0.9), "0.99": found.rank_at(0.99)} if known else None,
        "singular_values": list(found.values or ()),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    start = pair.start
    return {
        "first": pair.a.name,
        "second": pair.b.name,
        "cosine": total_cosine(pair.overlap),
        "similarity": {name: _phi(found) for name, found in pair.similarity.items()},
        "overlap": {name: vars(found) for name, found in pair.overlap.items()},
        "start": {name: _phi(found) for name, found in start.items()} if start and not isinstance(start, str) else start,
    }


def _phi(found: SubspaceSimilarity) -> dict[str, Any]:
    """φ(i, j) in rows of i, with four digits; chance is max(i, j) / n."""
    return {"n": found.n, "phi": [[round(value, 4) for value in row] for row in found.phi.tolist()]}
