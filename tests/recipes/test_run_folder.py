"""The run folder: options and results are read as they were written, and damage is one clear error."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralib.cli import dataclass_parsing
from loralib.errors import LoRAError, RunError
from loralib.recipes import resolved, run_folder
from loralib.recipes.options import TrainOptions


def options(**values: Any) -> TrainOptions:
    return TrainOptions.of({"model": "m", "data": "d.tsv"} | values)


def test_options_and_classes_survive_the_run_folder(tmp_path: Path) -> None:
    written = options(target_modules=["a", "b"], patience=3, lora_alpha=4.5)
    run_folder.write_options(tmp_path, written, ["no", "yes"])
    read, labels = run_folder.read_options(tmp_path)
    assert (resolved.resolved(read), labels) == (resolved.resolved(written), ["no", "yes"])
    assert "null" not in (tmp_path / "config.yaml").read_text()
    assert (read.peak_learning_rate, read.length, read.metric, read.roles, read.kind) == (
        written.peak_learning_rate,
        written.length,
        written.metric,
        written.roles,
        written.kind,
    )
    run_folder.write_options(tmp_path, read, labels)
    assert run_folder.read_options(tmp_path) == (read, labels)


@pytest.mark.parametrize("content", ["", "[1]", "model: m", "a: [\nb", "model: m\ndata: d\nr: 0", "model: m\ndata: d\nr: x"])
def test_a_damaged_config_is_one_clear_error(tmp_path: Path, content: str) -> None:
    run_folder.write_options(tmp_path, options(), None)
    (tmp_path / run_folder.CONFIG).write_text(content)
    with pytest.raises(RunError, match=r"^[^\n]*damaged[^\n]*$"):
        run_folder.read_options(tmp_path)


def test_a_folder_that_no_run_wrote_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for flags in ({"overwrite": True, "resume": False}, {"overwrite": False, "resume": False}):
        with pytest.raises(LoRAError):
            run_folder.RUN.check_free(tmp_path, **flags)
    assert (tmp_path / "thesis.tex").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RunError, match="is a file"), run_folder.RUN.alone_in(tmp_path / "out"):
        pass


@pytest.mark.parametrize("old", [{"r": 8}, {"epochs": 3.0}, {"label_smoothing": 0.1}])
def test_a_config_of_an_earlier_version_is_refused_by_name(tmp_path: Path, old: dict[str, Any]) -> None:
    run_folder.write_options(tmp_path, options(), None)
    config = tmp_path / run_folder.CONFIG
    config.write_text(yaml.safe_dump({"model": "m", "data": "d.tsv", **old}))
    for refused in (lambda: run_folder.read_options(tmp_path), lambda: parsed("--config", str(config))):
        with pytest.raises(
            RunError, match=rf"^[^\n]*has the option '{next(iter(old))}'[^\n]*LoRA's own stand under lora:[^\n]*$"
        ):
            refused()


def parsed(*words: str) -> dict[str, Any]:
    return dataclass_parsing.given(dataclass_parsing.dataclass_parser(TrainOptions, "loralib train", ""), words)


def test_what_came_out_is_read_as_json_holds_it(tmp_path: Path) -> None:
    assert run_folder.read_metrics(tmp_path) is None
    run_folder.write_metrics(tmp_path, {"value": 0.5, "norm": float("nan"), "labels": ["ä"]})
    assert run_folder.read_metrics(tmp_path) == {"value": 0.5, "norm": None, "labels": ["ä"]}


def test_the_trained_part_is_there_when_the_run_is_finished(tmp_path: Path) -> None:
    for method, part in (("lora", "adapter"), ("full", "model")):
        chosen = options(method=method)
        for name in (part, "metrics.json"):
            with pytest.raises(RunError, match=rf"not finished \({part}/ or metrics.json is missing\)"):
                run_folder.trained_part(tmp_path, chosen)
            (tmp_path / name).mkdir() if name == part else (tmp_path / name).touch()
        assert run_folder.trained_part(tmp_path, chosen) == tmp_path / part
        (tmp_path / "metrics.json").unlink()


def test_the_options_of_several_seeds_survive(tmp_path: Path) -> None:
    run_folder.write_seeds(tmp_path, options(r=3), 5)
    read, seeds = run_folder.read_seeds(tmp_path)
    assert (read.lora.r, seeds) == (3, 5)
    runs = run_folder.seed_runs(options(), tmp_path, [10, 2])
    assert [(chosen.seed, folder.name) for chosen, folder in runs] == [(10, "seed-10"), (2, "seed-2")]


def test_finished_seeds_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert run_folder.runs_of(tmp_path) == [tmp_path]
    run_folder.write_seeds(tmp_path, options(), 3)
    with pytest.raises(RunError, match=r"no seed in .* is finished; go on with: loralib train --output .* --resume"):
        run_folder.runs_of(tmp_path)
    for seed in (10, 2, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        if seed > 1:
            (tmp_path / f"seed-{seed}" / "metrics.json").touch()
    assert [folder.name for folder in run_folder.runs_of(tmp_path)] == ["seed-2", "seed-10"]


@pytest.mark.parametrize(
    "place", ["metrics.json", "lora/seed-1/metrics.json", "lora/checkpoints/checkpoint-3/trainer_state.json"]
)
def test_a_folder_has_begun_when_there_is_something_to_go_on_from(place: str, tmp_path: Path) -> None:
    assert not run_folder.has_begun(tmp_path)
    for root in (tmp_path / "other" / ".replaced", tmp_path):
        path = root / place
        path.parent.mkdir(parents=True) if not path.parent.is_dir() else None
        path.touch()
        assert run_folder.has_begun(tmp_path) == (root == tmp_path)


def test_sizes_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "in" / "b").write_bytes(b"345")
    assert run_folder.size(tmp_path) == 5


def test_a_file_may_not_allow_a_models_own_code(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="take trust_remote_code out of it") as caught:
        run_folder.check_names(tmp_path / "c.yaml", {"model": "m", "trust_remote_code": True})
    assert "--trust-remote-code" in caught.value.on_the_command_line()


@pytest.mark.parametrize("lora", [{"target_modules": "(a*)*b"}, {"rank_pattern": {"(a*)*b": 2}}, {"exclude_modules": "(a*)*b"}])
def test_an_expression_that_takes_too_long_is_refused_with_its_field(lora: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"c\.yaml: {next(iter(lora))}: '\(a\*\)\*b' "):
        run_folder.check_names(tmp_path / "c.yaml", {"model": "m", "lora": lora})


def test_before_and_after_of_texts_with_any_line_break(tmp_path: Path) -> None:
    """JSON needs no escape for U+2028, which str.splitlines takes for the end of a line."""
    rows = [{"answers": [{"prompt": "a\u2028b", "answer": text}]} for text in ("c\x85d", "e\u2029f")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / run_folder.SAMPLES).write_text(text, encoding="utf-8")
    assert run_folder.before_and_after(tmp_path) == ["prompt: a\u2028b", "before: c\x85d", "after: e\u2029f"]


def test_a_run_from_before_there_were_chat_templates_goes_on_without(tmp_path: Path) -> None:
    for problem, expected in (("generation", "none"), ("classification", None)):
        run_folder.write_options(tmp_path, options(data="d.jsonl", problem=problem), None)
        path = tmp_path / run_folder.CONFIG
        values = yaml.safe_load(path.read_text())
        assert run_folder.read_options(tmp_path)[0].chat_template is None
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if name != "packing"}))
        assert run_folder.read_options(tmp_path)[0].chat_template == expected
