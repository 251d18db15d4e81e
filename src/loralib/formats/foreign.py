"""What files are that hold no adapter in a known format: by their first bytes, and by the names of their tensors."""

import re
from collections.abc import Iterable
from pathlib import Path

_FIRST_BYTES = {
    b"GGUF": "a GGUF file of llama.cpp; give the PEFT folder that it was converted from",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch that (git lfs pull)",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"{": "a JSON file",
    b"\x93NUMPY": "a NumPy array",
}
# fmt: off
_NAMES = (  # expressions to be found in the name of a tensor, what the file is then, and what to do
    (r"^lycoris_.*\.(?:hada|lokr|oft|[ab][12])", "an adapter of LyCORIS of another method than LoRA (LoHa, LoKr, OFT …)"),
    (r"^lycoris_", "an adapter of LyCORIS, whose names do not say which model it is of; name them by a key map"),
    (r"\.(?:hada_w|lokr_w|oft_|vera_lambda|boft_|ia3_l|lora_E|lora_diag)", "an adapter of another method than LoRA"),
    (r"^(?:emb_params|clip_[lg]|<.*>)$|^bundle_emb\.", "an embedding of textual inversion, which changes no layer"),
    (r"^(?:image_proj|ip_adapter)\.", "an IP-Adapter, which adds layers and changes none"),
    (r"^lora_controlnet$", "a Control-LoRA of Stability AI, which has whole layers of a ControlNet in it"),
    (r"\.query_norm\.scale$", "a control adapter of FLUX by BFL, with scales and biases that no LoRA has; use diffusers"),
    (r"\.adapter\.linear_(?:in|out)\.weight$", "an adapter of NeMo; export it to Hugging Face's format there"),
    (r"\.lora_[ab]\.weight$", "an adapter of torchtune; give the PEFT folder that it writes too, or name them by a key map"),
    (r"\.(?:qkv_proj|qkv_proj_context|mlp_fc[12]|out_proj)\.lora_(?:down|up)$", "an adapter of Nunchaku; give its source"),
    (r"^prompt_(?:embeddings|encoder)", "a prompt that was tuned, which changes no layer"),
)
# fmt: on


def by_first_bytes(path: Path) -> str | None:
    """What the file is, if its first bytes are those of something else than tensors."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        first = file.read(max(map(len, _FIRST_BYTES)))
    return next((what for start, what in _FIRST_BYTES.items() if first.startswith(start)), None)


def by_names(names: Iterable[str]) -> str | None:
    """What a file of tensors with these names is, if it is known.

    >>> by_names(["emb_params"])
    'an embedding of textual inversion, which changes no layer'
    """
    found = list(names)
    return next((what for pattern, what in _NAMES if any(re.search(pattern, name) for name in found)), None)
