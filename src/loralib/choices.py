"""The choices that arguments and options of the command line offer, by name. Nothing heavy is imported here."""

from typing import Literal, get_args

Bias = Literal["none", "lora_only", "all"]
AdapterFormat = Literal["peft", "safetensors", "loralib", "diffusers", "kohya"]
ReadFormat = Literal["peft", "safetensors", "loralib", "diffusers", "kohya", "original", "mlx", "peft-file"]
CombineMethod = Literal["exact", "svd", "magnitude", "dare", "ties", "dare_ties"]
MajoritySign = Literal["total", "frequency"]
ExpertLayout = Literal["rank-major", "exchanged", "expert-major"]  # of PEFT from 0.19 on, of 0.17 and 0.18, of Unsloth
ExtraTensors = Literal["same", "first", "average", "drop"]
Factor = Literal["A", "B"]
Directions = Literal["A", "right", "left"]  # right singular vectors of A; of ΔW; left ones of ΔW
MergeInto = Literal["dense", "same"]  # where the base is quantized
QuantizedBase = Literal["nf4", "fp4", "int8"]
TiedWeights = Literal["refuse", "untie"]
Precision = Literal["float32", "float16", "bfloat16", "float64"]


def names(choice: object) -> tuple[str, ...]:
    """The names that a choice offers.

    >>> names(MajoritySign)
    ('total', 'frequency')
    """
    return get_args(choice)
