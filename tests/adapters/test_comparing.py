"""When two updates are equal, and what they must share to be added or exchanged."""

from dataclasses import replace

import torch

import loralib as lora
from loralib.adapters.comparing import own_field_names

UPDATE = lora.ConvolutionUpdate(torch.ones(2, 3, 4), torch.ones(6, 2, 1), 3, groups=2)


def test_equal_updates_are_of_one_class_and_of_the_same_bits():
    again = replace(UPDATE, A=UPDATE.A.clone())
    assert (again, hash(again)) == (UPDATE, hash(UPDATE))
    assert replace(UPDATE, A=UPDATE.A.nextafter(torch.tensor(2.0))) != UPDATE
    assert replace(UPDATE, groups=3) != UPDATE
    assert lora.LoRAUpdate(UPDATE.A, UPDATE.B, 3) != UPDATE
    assert UPDATE.__eq__(1) is NotImplemented


def test_structure_leaves_out_rank_and_scaling():
    wider = replace(UPDATE, A=torch.ones(4, 3, 4), B=torch.ones(6, 4, 1), lora_alpha=7)
    assert wider.structure() == UPDATE.structure()
    assert wider.form() != UPDATE.form()
    assert replace(UPDATE, groups=3).structure() != UPDATE.structure()


def test_fields_of_a_kind_are_those_that_not_all_have():
    assert own_field_names(lora.LoRAUpdate) == ()
    assert UPDATE.own_fields() == [("groups", 2), ("transposed", False)]
    embedding = lora.EmbeddingUpdate(torch.ones(2, 7), torch.ones(5, 2), 3, max_norm=0.5)
    assert embedding.own_fields() == [("max_norm", 0.5), ("norm_type", 2.0)]
    assert "max_norm" not in dict(embedding.form())
