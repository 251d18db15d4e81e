"""A folder is written only where it is free, and cleared only of what was written there."""

from pathlib import Path

import pytest

from loralib.errors import RunError
from loralib.storage.folders import Writer

INNER = Writer("run", r"a\.txt|part")
OUTER = Writer("seeds", r"seeds\.yaml|seed-\d+", inner=INNER)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    fill(tmp_path, "seeds.yaml", "notes", "seed-1/a.txt", "seed-1/part/b", "seed-2/a.txt", "seed-2/thesis.tex", "seed-x/a.txt")
    OUTER.clear(tmp_path)
    assert tree(tmp_path) == {"notes", "seed-2", "seed-2/thesis.tex", "seed-x", "seed-x/a.txt"}
    OUTER.clear(tmp_path / "none")


@pytest.mark.parametrize(
    ("names", "overwrite", "resume", "message"),
    [
        ([], False, False, None),
        (["a.txt"], False, False, "exists and is not empty; add --resume to go on with it, or --overwrite to replace it"),
        (["a.txt"], True, False, None),
        (["a.txt"], False, True, None),
        (["a.txt", "z", "b"], True, False, r"holds what no run wrote \(b, z\); give another --output"),
        (["z"], False, True, None),
    ],
)
def test_a_folder_is_free_or_may_be_replaced_or_gone_on_with(
    tmp_path: Path, names: list[str], overwrite: bool, resume: bool, message: str | None
) -> None:
    fill(tmp_path, *names)
    if message is None:
        INNER.check_free(tmp_path, overwrite, resume)
    else:
        with pytest.raises(RunError, match=message):
            INNER.check_free(tmp_path, overwrite, resume)


def test_one_that_must_be_alone_refuses_others_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds what no comparison wrote \(z\)"):
        Writer("comparison", "a", alone=True).check_free(fill(tmp_path, "z"), overwrite=False, resume=True)
