"""`loralib.utils` has what loralib 0.1's had: the same names, and the library's own functions under them."""

import loralib as lora
from loralib import utils
from peers import loralib_0_1


def test_the_names_of_0_1_are_there():
    own = {name for name in vars(loralib_0_1().utils) if not name.startswith("_")}
    assert {name for name in utils.__all__ if hasattr(utils, name)} == own


def test_the_functions_are_the_librarys():
    assert utils.mark_only_lora_as_trainable is lora.mark_only_lora_as_trainable
    assert utils.lora_state_dict is lora.lora_state_dict
    assert utils.LoRALayer is lora.LoRALayer
