"""WebNLG's and DART's metrics give the lines that the organisers printed, and their reference files are the tokenised data."""

import re

import pytest

from loralib.recipes.nlg.metrics.by_sacrebleu import multi_bleu, perl_line
from loralib.recipes.nlg.metrics.files import read_predictions, read_references
from loralib.recipes.nlg.metrics.tokens import tokenised
from loralib.recipes.nlg.scoring import multi_bleus
from loralib.recipes.nlg.triples import read_dart, read_webnlg
from peers import data

TEAMS = ("Baseline", "UPF-TALN")
TRACKS = {"all": "all", "old": "seen", "new": "unseen"}


def of_team(team: str, track: str) -> tuple[list[str], list[tuple[str, ...]]]:
    outputs = data("webnlg", "system_outputs")
    gold = [outputs / "references" / f"gold-{track}-cat-reference{i}.lex" for i in range(3)]
    return read_predictions(outputs / "teams" / f"{team}_{track}-cat.txt").column("prediction"), read_references(gold).column(
        "references"
    )


def printed(team: str, track: str) -> str:
    path = data("webnlg", "system_outputs", "scores", f"bleu3ref-{team}_{track}-cat.txt")
    return path.read_text(encoding="utf-8").splitlines()[0].strip()


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("track", TRACKS)
def test_the_challenges_line_is_reproduced_to_the_digit(team: str, track: str) -> None:
    lowercase = team == "Baseline"  # the texts are in lower case already
    assert perl_line(multi_bleu(*of_team(team, track), lowercase=lowercase)) == printed(team, track)


def test_so_it_is_from_all_rows_with_their_categories() -> None:
    team = "UPF-TALN"
    categories = read_webnlg(data("webnlg", "test.json.gz"))["category"][:]
    found = multi_bleus("webnlg", *of_team(team, "all"), categories)
    assert {name: perl_line(line) for name, line in found.items()} == {
        f"bleu_{part}": printed(team, track) for track, part in TRACKS.items()
    }


def test_bart_large_has_its_score_on_darts_leaderboard() -> None:
    references = read_references([data("dart", f"reference{i}.lex") for i in range(3)]).column("references")
    found = multi_bleus("dart", read_predictions(data("dart", "bart-large_dart.txt")).column("prediction"), references)
    assert round(found["bleu"].score, 2) == 48.56


def test_blank_lines_make_the_difference_to_sacrebleu() -> None:
    predictions, references = of_team("Baseline", "all")
    without = multi_bleu(predictions, [[text for text in row if text] for row in references])
    assert round(without.score, 2) == 32.39


def test_webnlgs_reference_files_are_the_tokenised_texts_of_its_data() -> None:
    texts = read_webnlg(data("webnlg", "test.json.gz"))["references"]
    rows = of_team("Baseline", "all")[1]
    ours = [{tokenised(text, plain=True) for text in row} for row in texts]
    hits = [text.strip() in texts for row, texts in zip(rows, ours, strict=True) for text in row if text.strip()]
    assert len(hits) == 4894
    assert all(hits)


def test_darts_reference_files_are_the_tokenised_texts_of_its_data() -> None:
    texts = read_dart(data("dart", "dart-v1.1.1-full-test.xml"))["references"]
    rows = read_references([data("dart", f"reference{i}.lex") for i in range(3)]).column("references")
    ours = [{tokenised(text) for text in row} for row in texts]
    hits = [text.strip() in texts for row, texts in zip(rows, ours, strict=True) for text in row if text.strip()]
    assert len(hits) > 11_000
    assert all(hits)


@pytest.mark.parametrize("team", TEAMS)
def test_what_is_tokenised_stays_as_it_is(team: str) -> None:
    predictions, references = of_team(team, "all")
    for text in [*predictions, *(text for row in references for text in row)]:
        assert tokenised(text, plain=True) == tokenised(text) == text.strip()


def test_the_printed_line_holds_what_the_result_does() -> None:
    found = multi_bleu(*of_team("Baseline", "new"))
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", perl_line(found))]
    assert numbers[0] == round(found.score, 2)
    assert numbers[-2:] == [found.sys_len, found.ref_len]
