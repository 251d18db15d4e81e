"""Special tokens that stand in messages as text: a tokenizer reads them as what they are, so that they end a turn or begin one.

They come from texts that a chat template was applied to before, or from texts about language models.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]


def note(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Messages], source: str) -> str:
    """What to say of rows whose messages hold special tokens of the tokenizer; "" where there are none."""
    special = [token for token in tokenizer.all_special_tokens if token.strip()]
    contents = ["\n".join(str(message.get("content") or "") for message in messages) for messages in rows]
    found = [(i, token) for i, text in enumerate(contents, 1) if (token := next((t for t in special if t in text), None))]
    if not found:
        return ""
    number, token = found[0]
    many = f"{len(found):,} of {len(contents):,} rows have" if len(found) > 1 else "a row has"
    return (
        f"warning: {source}: {many} special tokens in messages (row {number}: {token}), which end or begin turns where they "
        "stand; give messages without the marks of a chat template"
    )
