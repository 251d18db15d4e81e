"""How each evaluation cuts text into words.

- `mteval_words`: NIST's mteval-v13a (E2E's BLEU and NIST), by sacrebleu, in lower case, as mteval has it.
- `treebank_words`: those of the Penn Treebank without punctuation, in lower case (E2E's METEOR, ROUGE-L and CIDEr). Stanford's
  tokeniser does this in E2E's scripts; `_TREEBANK` agrees with it on all but 8 of the 5,323 texts of E2E's test set and TGen,
  but knows none of its abbreviations ("Mr.") and only the commonest contractions.
- `tokenised`: the WebNLG challenge's and DART's reference files: lower case, and a space around all that is no letter or digit.
  What is tokenised already stays as it is.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import cast

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_mteval = cast(Callable[[str], str], Tokenizer13a())  # type: ignore[no-untyped-call]

_TREEBANK = re.compile(
    r"""
      \d+(?:[.,]\d+)+                       # 1,000 and 4.5 are one word
    | (?:[a-z]\.){2,}                       # so are initials, with their full stops
    | n't\b | '(?:s|m|d|ll|re|ve)\b         # what is shortened is a word: is|n't, it|'s
    | [^\W_](?:(?!n't\b)[^\W_])*            # letters and digits,
      (?:[-./&_](?!n't\b)[^\W_](?:(?!n't\b)[^\W_])*)*  # joined by one of these to more: family-friendly
    | [#$€%@&*+=]                           # signs that are no punctuation
    """,
    re.VERBOSE,
)
_TREEBANK_SIGNS = str.maketrans({"£": "#", "\N{RIGHT SINGLE QUOTATION MARK}": "'"})  # Stanford's tokeniser writes a pound so

_PLAIN = str.maketrans(
    "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{EN DASH}\N{EM DASH}\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
    "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{LATIN SMALL LETTER DOTLESS I}øØłŁđĐ",
    "----''\"\"ioOlLdD",
) | str.maketrans({"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th"})
_BETWEEN_WORDS = re.compile(r"([^\w\u0300-\u036f])")  # accents that stand alone belong to the letter before


def mteval_words(text: str) -> list[str]:
    """The words by mteval-v13a, in lower case.

    >>> mteval_words("The Mill costs £20-25, doesn't it?")
    ['the', 'mill', 'costs', '£20', '-', '25', ',', "doesn't", 'it', '?']
    """
    return _mteval(text.lower()).split()


def treebank_words(text: str) -> list[str]:
    """The words by the Penn Treebank, in lower case and without punctuation.

    >>> treebank_words("It isn't family-friendly; it costs £20, said the owner's son.")
    ['it', 'is', "n't", 'family-friendly', 'it', 'costs', '#', '20', 'said', 'the', 'owner', "'s", 'son']
    """
    return _TREEBANK.findall(text.translate(_TREEBANK_SIGNS).lower())


def tokenised(text: str, plain: bool = False) -> str:
    """The text in lower case with its words and signs apart, as in the reference files of WebNLG and DART.

    plain: whether to write letters without their accents, as WebNLG has it and DART has not.

    >>> tokenised("Madrid–Barajas is in San Sebastián, Spain.", plain=True)
    'madrid - barajas is in san sebastian , spain .'
    """
    if plain:
        decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN))
        text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return " ".join(_BETWEEN_WORDS.sub(r" \1 ", text).lower().split())
