"""BLEU, chrF and TER of a whole corpus, by sacrebleu. BLEU and chrF are in hundredths, TER is a share of 1.

BLEU = BP · exp(Σ_{n≤4} log p_n / 4), BP = min(1, exp(1 − ref_len / hyp_len)) (Papineni et al. 2002), in two ways;
ref_len is the sum of the lengths of the references that are closest in length (the shorter of two that are equally close):

- `mteval`: E2E's, over the words of mteval-v13a, which folds case; `cased_bleu`, sacrebleu's default, does not. An order
  without a match is smoothed.
- `multi_bleu`: the WebNLG challenge's and DART's, over words between spaces, by Moses' multi-bleu.perl. Without smoothing, and
  with a trait of its own: a blank line in a file of references, which stands for a missing reference, is a reference of length
  0, so that the brevity penalty is milder (on BART-large's outputs for DART 48.56 instead of 47.59).

chrF (Popović 2015): the F-score (β = 2) of runs of up to 6 letters; case counts, spaces do not; not chrF++, which adds words.
Of references that are equally good a row takes the first, whose length then counts.

TER (Snover et al. 2006): the words put in, left out, changed or moved to make a prediction its reference, as a share of the
reference's words; case is folded. Lower is better, and 1 is as bad as saying nothing. sacrebleu's search is that of tercom.

- `corpus_ter`: all edits over all words, the words of a row being the mean of its references: sacrebleu's and tercom's.
- the mean of `row_ters`, the least TER of any reference of each row: the LoRA paper's, from WebNLG's GenerationEval. As there,
  a blank reference counts 1, so that a row with one is not worse. That script counts edits by pyter, whose search finds
  now and then another number.

Every function raises `DataError` for rows that do not fit.
"""

from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from .rows import References, check, files, given, streams


def _score(metric: BLEU | CHRF | TER, predictions: Sequence[str], references: References) -> float:
    check(predictions, references)
    return float(metric.corpus_score(list(predictions), streams(references)).score)


def mteval(predictions: Sequence[str], references: References) -> float:
    """BLEU as mteval-v13a has it.

    >>> round(mteval(["The Mill is a cheap pub."], [["The mill is a pub.", "There is a cheap pub, The Mill."]]), 2)
    79.53
    """
    return _score(BLEU(lowercase=True, force=True), predictions, references)  # `force` only keeps it from warnings


def cased_bleu(predictions: Sequence[str], references: References) -> float:
    """BLEU as sacrebleu has it by default."""
    return _score(BLEU(force=True), predictions, references)


def multi_bleu(predictions: Sequence[str], references: References, lowercase: bool = False) -> BLEUScore:
    """BLEU as multi-bleu.perl has it; text must be tokenised. lowercase: its option -lc.

    A row that has fewer references than another has no blank one (the LoRA paper's scripts repeat its first one instead).
    """
    check(predictions, references)
    metric = BLEU(lowercase=lowercase, tokenize="none", smooth_method="none", force=True)
    found: BLEUScore = metric.corpus_score(list(predictions), files(references, repeat=True))
    return found


def perl_line(found: BLEUScore) -> str:
    """What multi-bleu.perl prints.

    >>> print(perl_line(multi_bleu(["the mill is a pub ."], [["the mill is a pub near a river ."]])))
    BLEU = 48.24, 100.0/80.0/75.0/66.7 (BP=0.607, ratio=0.667, hyp_len=6, ref_len=9)
    """
    precisions = "/".join(f"{precision:.1f}" for precision in found.precisions)
    lengths = f"ratio={found.ratio:.3f}, hyp_len={found.sys_len}, ref_len={found.ref_len}"
    return f"BLEU = {found.score:.2f}, {precisions} (BP={found.bp:.3f}, {lengths})"


def chrf(predictions: Sequence[str], references: References) -> float:
    """chrF.

    >>> chrf(["a pub", "an inn"], [["a pub", "a bar"], ["an inn"]])
    100.0
    """
    return _score(CHRF(), predictions, references)


def corpus_ter(predictions: Sequence[str], references: References) -> float:
    """TER, all edits over all words.

    >>> corpus_ter(["the mill is a pub", "a pub"], [["the mill is a pub"], ["a cheap pub near here"]])
    0.3
    """
    return _score(TER(), predictions, references) / 100


def row_ters(predictions: Sequence[str], references: References) -> list[float]:
    """The least TER of a reference for each row. It takes seconds for a hundred long texts that are far from their references.

    >>> row_ters(["the mill is a pub", "a pub"], [["the mill is a pub"], ["a cheap pub near here"]])
    [0.0, 0.6]
    """
    check(predictions, references)
    metric = TER()
    return [_least(metric, text, row) for text, row in zip(predictions, references, strict=True)]


def _least(metric: TER, text: str, row: Sequence[str]) -> float:
    targets = given(row)
    words = text.lower().split()
    bounds = [_bound(words, target.lower().split()) for target in targets]
    least = 1.0 if len(targets) < len(row) else float("inf")
    # The search is slow; what cannot be less need not be searched.
    for bound, target in sorted(zip(bounds, targets, strict=True)):
        if bound < least:
            least = min(least, float(metric.sentence_score(text, [target]).score) / 100)
    return least


def _bound(words: Sequence[str], target: Sequence[str]) -> float:
    """What TER is at least: moving words does not change which there are."""
    shared = (Counter(words) & Counter(target)).total()
    return (max(len(words), len(target)) - shared) / len(target)
