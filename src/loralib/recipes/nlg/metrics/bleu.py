"""BLEU (Papineni et al. 2002) of a whole corpus, in hundredths, as two scripts compute it; both are done by sacrebleu.

    BLEU = BP · exp(Σ_{n≤4} log p_n / 4),   BP = min(1, exp(1 − ref_len / hyp_len))

with p_n the share of the predictions' n-grams that their references have, each counted at most as often as in one of them, and
ref_len the sum of the lengths of the references that are closest in length (the shorter of two that are equally close).

- `mteval`: E2E's, over the words of mteval-v13a. What sacrebleu does by default is the same but for case: mteval folds it.
  An order without a match is smoothed.
- `multi_bleu`: the WebNLG challenge's and DART's, over words between spaces, by Moses' multi-bleu.perl. Without smoothing, and
  with a trait that sacrebleu does not share: a blank line in a file of references, which stands for a missing reference, is a
  reference of length 0. A prediction of two words is then closer in length to it than to a reference of five, and the brevity
  penalty is milder. On the challenge's Baseline, whose predictions are often short, that is 33.24 instead of 32.39; on
  BART-large's outputs for DART, 48.56 instead of 47.59.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU

from .rows import References, check, files, streams


def mteval(predictions: Sequence[str], references: References, lowercase: bool = True) -> float:
    """BLEU as mteval-v13a has it. lowercase: False for what sacrebleu does by default.

    Raises `DataError` for rows that do not fit.

    >>> round(mteval(["The Mill is a cheap pub."], [["The Mill is a pub.", "There is a cheap pub, The Mill."]]), 2)
    79.53
    """
    check(predictions, references)
    metric = BLEU(lowercase=lowercase, force=True)  # which only keeps it from remarking that text is tokenised
    return float(metric.corpus_score(list(predictions), streams(references)).score)


@dataclass(frozen=True)
class MultiBleu:
    """What multi-bleu.perl prints. score and precisions are in hundredths, lengths in words.

    >>> print(multi_bleu(["the mill is a pub ."], [["the mill is a pub near a river ."]]))
    BLEU = 48.24, 100.0/80.0/75.0/66.7 (BP=0.607, ratio=0.667, hyp_len=6, ref_len=9)
    """

    score: float
    precisions: tuple[float, ...]
    penalty: float
    hyp_len: int
    ref_len: int

    def __str__(self) -> str:
        ratio = self.hyp_len / self.ref_len if self.ref_len else 0.0
        precisions = "/".join(f"{precision:.1f}" for precision in self.precisions)
        lengths = f"hyp_len={self.hyp_len}, ref_len={self.ref_len}"
        return f"BLEU = {self.score:.2f}, {precisions} (BP={self.penalty:.3f}, ratio={ratio:.3f}, {lengths})"


def multi_bleu(predictions: Sequence[str], references: References, lowercase: bool = False) -> MultiBleu:
    """BLEU as multi-bleu.perl has it; text must be tokenised. lowercase: its option -lc.

    A blank reference has length 0, as above; a row that merely has fewer references than another has none such (the LoRA
    paper's scripts repeat its first one instead). Raises `DataError` for rows that do not fit.

    >>> multi_bleu(["the mill ."], [["the mill is a pub ."]]).score
    0.0
    """
    check(predictions, references)
    metric = BLEU(lowercase=lowercase, tokenize="none", smooth_method="none", force=True)
    found = metric.corpus_score(list(predictions), files(references, repeat=True))
    return MultiBleu(float(found.score), tuple(map(float, found.precisions)), float(found.bp), found.sys_len, found.ref_len)
