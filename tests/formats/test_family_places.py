"""Where a layer of a diffusion transformer is in diffusers, by its original name."""

import pytest

from loralib.formats.diffusion_families import FAMILIES, FLAT, Family
from loralib.formats.family_places import Place, is_original, place, refused_family

MADE = Family(
    "made",
    {
        "blocks.#.qkv": "layers.#.attn.{to_q,to_k,to_v}",
        "blocks.#.one": "layers.#.{a=in,b}",
        "blocks.#.mod": "norms.#.linear~",
        "text.*": "text_encoder:model.*",
        "wide": "first",
        "out": "proj",
    },
    ratios={"wide": (3, 1)},
)
OTHER = Family("other", {"wide": "second"})


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The tables are looked up by the name of the family."""
    monkeypatch.setattr("loralib.formats.family_places.FAMILIES", (*FAMILIES, MADE, OTHER))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("blocks.12.qkv", Place(tuple(f"transformer.layers.12.attn.{n}" for n in ("to_q", "to_k", "to_v")), (False,) * 3)),
        ("blocks.0.one", Place(("transformer.layers.0.a", "transformer.layers.0.b"), (True, False))),
        ("blocks.3.mod", Place(("transformer.norms.3.linear",), (False,), swapped=True)),
        ("out", Place(("transformer.proj",), (False,))),
        ("blocks.x.qkv", None),
        ("blocks.12345.qkv", None),
        ("blocks.1.qkv.more", None),
        ("more.blocks.1.qkv", None),
        ("blocks#1#qkv", None),
    ],
)
def test_a_name_is_filled_into_its_row(flat, name, found):
    assert place(MADE, name.replace(".", "_") if flat else name, flat=flat) == found


def test_the_rest_of_a_name_belongs_to_another_component():
    assert place(MADE, "text.layers.0.q", flat=False) == Place(("text_encoder.model.layers.0.q",), (False,))


@pytest.mark.parametrize(("shape", "found"), [((9, 3), True), ((3, 1), True), ((3, 3), False), ((1, 3), False), (None, True)])
def test_the_ratio_of_a_weight_decides_where_a_name_is_not_enough(shape, found):
    assert (place(MADE, "wide", flat=False, shape=shape) is not None) == found
    assert place(OTHER, "wide", flat=False, shape=shape) == Place(("transformer.second",), (False,))


def test_names_with_underscores_are_those_of_families_that_are_written_so():
    assert is_original("single_blocks_3_linear2")
    assert not is_original("single_blocks_3_linear7")
    assert not is_original("down_blocks_0_attentions_0_proj_in")
    assert all(family.prefixes for family in FAMILIES if FLAT in family.prefixes)


def test_a_family_that_no_table_has_is_known_by_its_names():
    assert refused_family("down_blocks.0.attentions.0.proj_in") is None
    assert refused_family("joint_blocks.0.context_block.attn.qkv") == "Stable Diffusion 3"
    assert refused_family("more.joint_blocks.0.attn") is None
