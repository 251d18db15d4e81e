"""How each evaluation cuts text into words.

- `mteval_words`: NIST's mteval-v13a (E2E's BLEU and NIST), by sacrebleu, in lower case, as mteval has it.
- `treebank_words`: those of the Penn Treebank without punctuation, in lower case (E2E's METEOR, ROUGE-L and CIDEr). Stanford's
  tokeniser does this in E2E's scripts. `_TREEBANK` agrees with it on all 5,323 texts of E2E's test set and TGen, and on all but
  one of the 45,258 others of the data set; rarer things, such as addresses on the web, it does not know.
- `tokenised`: the WebNLG challenge's and DART's reference files: lower case, and a space around all that is no letter or digit.
  What is tokenised already stays as it is.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import cast

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_mteval = cast(Callable[[str], str], Tokenizer13a())  # type: ignore[no-untyped-call]

_ABBREVIATIONS = (  # which keep their full stop wherever they stand
    "a.m al apr assn aug ave blvd bros capt cf co col corp cos dec dept dr drs esq est etc ext feb fri ft gen gov hon inc jan"
    " jr jul jun lt ltd maj mar md mon mr mrs ms mt nov oct p.m plc pres prof rd rep rev sen sep sept sgt sq sr st ste tel thu"
    " thurs tue tues univ vs wed"
)
_BEGINS_SENTENCES = "a|an|and|but|he|i|if|in|it|its|on|she|the|there|they|this|we|with|you|your"  # behind an initial
_TREEBANK = re.compile(
    rf"""
      (?:(?<![\w-])-)?\d+(?:[.,:]\d+)+      # 1,000, 4.5 and 12:30 are one word; a sign belongs to the number
    | (?:(?<![\w-])-)?\.\d+                 # .5
    | (?:[a-z]\.){{2,}}                     # so are initials, with their full stops,
    | (?<!\w)(?:{"|".join(_ABBREVIATIONS.replace(".", "[.]").split())})\.  # and abbreviations
    | (?<!\w)(?:no|nos|pp|fig|ca)\.(?=\s+\d)
    | (?<!\w)[a-z]\.(?=\s+(?!(?:{_BEGINS_SENTENCES})\b)\w)
    | n't\b | '(?:s|m|d|ll|re|ve)\b         # what is shortened is a word: is|n't, it|'s
    | '\d\ds?\b | 'n'                       # and '90s, rock 'n' roll
    | (?<!\w)(?:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|[jy]'(?=\w))  # can|not
    | (?<!\w)[dol]['\u2019](?!(?:ll|re|ve)\b)[^\W\d_]{{2}}[^\W_]*(?:[-./&_][^\W_]+)*  # d'oeuvre, o'clock
    | (?:(?<![\w-])-(?=\d))?                # letters and digits,
      [^\W_](?:(?!n't\b)[^\W_])*
      (?:(?:[-/&_]|(?<=[^\W\d_])\.(?=[^\W\d_]))(?!n't\b)[^\W_](?:(?!n't\b)[^\W_])*)*  # joined by one of these: family-friendly
      (?:\.(?=[,;:]))?                      # and a full stop before a comma
    | [!?]{{2,}} | \*+                      # signs that are no punctuation
    | [#£$€¥%@&+=/~|\\°<>()[\]{{}}]
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SHORTENED = re.compile(r"\u2019(?=(?:s|m|d|ll|re|ve|t)\b)", re.IGNORECASE)
_WRITTEN = {  # signs as Stanford's tokeniser writes them
    "£": "#",
    "€": "$",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}

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
    words = (match[0].lower() for match in _TREEBANK.finditer(_SHORTENED.sub("'", text)))
    return [_WRITTEN.get(word, word) for word in words]


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
