"""Every linear layer of the blocks of known models plays one role."""

import pytest
import torch
import transformers
from torch import nn

from hf import encoder_shape
from loralib.errors import ConfigError
from loralib.recipes import roles
from loralib.recipes.options import ROLES


@pytest.mark.parametrize("kind", roles.ENCODERS)
def test_every_linear_layer_of_the_body_plays_one_role(kind: str) -> None:
    model = encoder_shape(kind)
    by_role = {role: roles.role_targets(model, [role])["target_modules"] for role in ROLES}
    blocks = 1 if kind == "albert" else 2  # whose blocks share their weights
    assert {role: len(names) for role, names in by_role.items()} == {
        "query": blocks,
        "key": blocks,
        "value": blocks,
        "output": blocks,
        "mlp": 2 * blocks,
    }
    everything = roles.role_targets(model, ROLES)["target_modules"]
    assert sorted(everything) == sorted(name for names in by_role.values() for name in names)
    shapes = {role: {tuple(model.get_submodule(n).weight.shape) for n in names} for role, names in by_role.items()}
    assert all(shapes[role] == {(16, 16)} for role in ROLES[:4])
    assert shapes["mlp"] == {(24, 16), (16, 24)}
    blocks_linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ("layer" in name) and "projection" not in name and "pos_" not in name
    }
    assert blocks_linear == set(everything)


def test_a_model_that_is_not_known_is_told_what_to_give() -> None:
    config = transformers.AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=30)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError, match=r"layers of a bloom model are query, value is not known; give --target-modules"):
        roles.role_targets(model, ["query", "value"])
