"""What the LoRA paper prints for LoRA on GPT-2 medium and large, by task and metric: its figures, in its units, not ours."""

from collections.abc import Mapping
from types import MappingProxyType

MODELS = ("GPT-2 medium", "GPT-2 large")
FIGURES: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "e2e": {
            "bleu": ("70.4 ± .1", "70.4 ± .1"),
            "nist": ("8.85 ± .02", "8.89 ± .02"),
            "meteor": ("46.8 ± .2", "46.8 ± .2"),
            "rouge_l": ("71.8 ± .1", "72.0 ± .2"),
            "cider": ("2.53 ± .02", "2.47 ± .02"),
        },
        "webnlg": {
            "bleu_unseen": ("46.7 ± .4", "48.4 ± .3"),
            "bleu_seen": ("62.1 ± .2", "64.0 ± .3"),
            "bleu_all": ("55.3 ± .2", "57.0 ± .1"),
            "meteor_unseen": (".38", ".39"),
            "meteor_seen": (".44", ".45"),
            "meteor_all": (".41", ".42"),
            "ter_unseen": (".46", ".45"),
            "ter_seen": (".33", ".32"),
            "ter_all": (".39", ".38"),
        },
        "dart": {"bleu": ("47.1 ± .2", "47.5 ± .1"), "meteor": (".39", ".39"), "ter": (".46", ".45")},
        "any": {},
    }
)
TASKS = tuple(FIGURES)
