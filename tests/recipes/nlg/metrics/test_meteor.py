"""METEOR's own program: where it is found, what it is given, and what it says when it fails."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from loralib.errors import ConfigError, DataError
from loralib.recipes.nlg.metrics import meteor


def test_meteor_is_given_rows_of_as_many_references(program: Path, tmp_path: Path) -> None:
    meteor.meteor(["a\nb", ""], [["c"], ["d", "", "e"]], program)
    assert (tmp_path / "predictions").read_text() == "a b\n\n"
    assert (tmp_path / "references").read_text() == "c\n\nd\ne\n"
    assert (tmp_path / "words").read_text().split()[-6:] == ["-l", "en", "-norm", "-q", "-r", "2"]


def test_a_program_that_fails_is_reported(program: Path, tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho no paraphrases >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"gave no score \(no paraphrases\)"):
        meteor.meteor(["a"], [["b"]], program)


def test_the_jar_is_the_one_asked_for_first(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(meteor.VARIABLE, raising=False)
    monkeypatch.setattr(meteor, "find_spec", lambda name: None)
    assert meteor.find_jar() is None
    assert meteor.find_jar(program) == program
    other = tmp_path / "other.jar"
    other.touch()
    monkeypatch.setenv(meteor.VARIABLE, str(other))
    assert meteor.find_jar() == other
    assert meteor.find_jar(program) == program
    with pytest.raises(ConfigError, match=r"--meteor-jar names .*nope, which is not a file"):
        meteor.find_jar(tmp_path / "nope")


@pytest.mark.parametrize("there", [True, False])
def test_an_installed_package_has_the_jar_where_java_is(there: bool, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program.parent / "meteor").mkdir()
    if there:
        program.rename(program.parent / "meteor" / program.name)
    monkeypatch.delenv(meteor.VARIABLE, raising=False)
    package = SimpleNamespace(submodule_search_locations=[str(program.parent)])
    monkeypatch.setattr(meteor, "find_spec", lambda name: package)
    assert meteor.find_jar() == (program.parent / "meteor" / program.name if there else None)
    monkeypatch.setenv("PATH", "")
    assert meteor.find_jar() is None


def test_the_last_line_is_the_score_and_rows_are_checked_first(program: Path, tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho Segment 1\necho 0.25\n")
    assert meteor.meteor(["a"], [["b"]], program) == 0.25
    with pytest.raises(DataError, match="2 predictions and 1 rows"):
        meteor.meteor(["a", "b"], [["b"]], program)
    (tmp_path / "java").write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="it printed nothing"):
        meteor.meteor(["a"], [["b"]], program)
