"""What the formats share: parts of updates from strangers, refused with their place; updates in a form that others know."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.convolution_updates import LegacyTransposedUpdate
from loralib.formats import validation
from models import close, same_bits
from sample_adapters import UPDATE, updates

A, B = UPDATE.A, UPDATE.B
NAMES = {"lora_A": "down", "lora_B": "up", "lora_magnitude": "scale"}


def test_an_update_is_made_of_its_parts():
    found = validation.made("x", lora.LoRAUpdate, {"lora_A": A, "lora_B": B, "lora_magnitude": torch.ones(4)}, 4, True)
    assert found == lora.LoRAUpdate(A, B, 4, True, magnitude=torch.ones(4))
    conv = validation.made("x", lora.ConvolutionUpdate, {"lora_A": A[..., None], "lora_B": B[..., None]}, 4, groups=2)
    assert conv.groups == 2


@pytest.mark.parametrize(
    ("parts", "lora_alpha", "use_rslora", "telling"),
    [
        ({"lora_A": torch.zeros(0)}, 4, False, "no numbers in its factors, which DeepSpeed"),
        ({"lora_A": A.int()}, 4, False, "factors of dtype torch.int32; expected float32"),
        ({"lora_B": B.bool()}, 4, False, "factors of dtype torch.bool"),
        ({"lora_magnitude": torch.ones(4).to(torch.float8_e4m3fn)}, 4, False, "factors of dtype torch.float8"),
        ({"lora_A": A[:1]}, 4, False, "are not factors of one update"),
        ({"lora_magnitude": torch.ones(3)}, 4, False, "one number an output"),
        *(({}, alpha, False, "lora_alpha=") for alpha in (0, -1, math.inf, math.nan, True, "4", None)),
        ({}, 4, 1, "use_rslora=1; expected a positive number, a bool"),
    ],
)
def test_what_is_no_part_of_an_update_is_refused_with_its_place(parts, lora_alpha, use_rslora, telling):
    with pytest.raises(lora.FormatError, match=rf"^file: layer 'q'.*{telling}"):
        validation.made("file: layer 'q'", lora.LoRAUpdate, {"lora_A": A, "lora_B": B} | parts, lora_alpha, use_rslora)


def test_a_kernel_makes_a_convolution():
    assert validation.kind_of({"lora_B": B}) is lora.LoRAUpdate
    assert validation.kind_of({"lora_B": B[..., None]}) is lora.ConvolutionUpdate


def test_parts_are_sorted_by_layer_by_the_longest_name_that_fits():
    stored = {"a.b.up": A, "a.b.up.down": B, "c.down": A, "head.weight": B, "up": A}
    found, others = validation.by_layer("x", stored, ["down", "up", "up.down"])
    assert found == {"a.b": {"up": A, "up.down": B}, "c": {"down": A}}
    assert others == {"head.weight", "up"}
    with pytest.raises(lora.FormatError, match=r"^x: tensor '\.up' belongs to no layer"):
        validation.by_layer("x", {".up": A}, ["up"])


def test_the_parts_of_an_update_are_taken_by_their_names():
    assert validation.parts_of("x", {"down": A, "up": B, "other": A}, NAMES) == {"lora_A": A, "lora_B": B}
    with_scale = validation.parts_of("x", {"down": A, "up": B, "scale": B[:, 0]}, NAMES, without=["mid"])
    assert list(with_scale) == ["lora_A", "lora_B", "lora_magnitude"]
    assert validation.named("q", with_scale, NAMES).keys() == {"q.down", "q.up", "q.scale"}
    for missing in ("down", "up"):
        with pytest.raises(lora.FormatError, match=f"^x has no {missing}"):
            validation.parts_of("x", {name: A for name in ("down", "up") if name != missing}, NAMES)
    with pytest.raises(lora.FormatError, match=r"^x has mid and down"):
        validation.parts_of("x", {"down": A, "up": B, "mid": A}, NAMES, without=["mid"])


@given(updates(["linear", "embedding", "conv", "grouped"], dora=True))
def test_magnitudes_come_back_from_the_shapes_of_peft(update):
    tensors = validation.in_shapes_of_peft(update)
    magnitude = tensors["lora_magnitude"]
    assert magnitude.shape == ((1, len(update.B), 1, 1) if update.B.dim() == 4 else (len(update.B),))
    assert same_bits(validation.from_shapes_of_peft(tensors)["lora_magnitude"], update.magnitude)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(None, 7), (torch.tensor(4.0), 4), (torch.tensor([[2]]), 2), (torch.tensor(0.5).half(), 0.5)]
)
def test_an_alpha_is_a_number_and_whole_where_it_can_be(alpha, expected):
    found = validation.alpha_of("x", alpha, 7)
    assert found == expected
    assert isinstance(found, int) == float(expected).is_integer()


@pytest.mark.parametrize(
    ("alpha", "telling"),
    [
        (torch.ones(2), r"alpha of shape \(2,\)"),
        (torch.ones(0), r"alpha of shape \(0,\)"),
        (torch.tensor(True), "dtype torch.bool"),
        (torch.tensor(1j), "dtype torch.complex64"),
        *((torch.tensor(value), "expected a positive number") for value in (0.0, -1.0, math.nan, math.inf)),
    ],
)
def test_what_is_no_alpha_is_refused(alpha, telling):
    with pytest.raises(lora.FormatError, match=f"^x has .*{telling}"):
        validation.alpha_of("x", alpha, 7)


@given(st.floats(1e-300, 1e300))
def test_an_alpha_is_written_exactly(value):
    assert validation.alpha_of("x", validation.alpha_tensor(value), 7) == value
    single = validation.alpha_tensor(value).dtype == torch.float32
    assert single == (float(torch.tensor(value, dtype=torch.float32)) == value)


@given(updates(["linear", "embedding", "conv", "legacy", "merged"], [torch.float32]))
def test_the_common_form_is_the_same_update(update):
    found = validation.common_form("q", update, "kohya")
    assert type(found) in (lora.LoRAUpdate, lora.EmbeddingUpdate, lora.ConvolutionUpdate)
    assert close(found.delta(), update.delta(), factor=64)


t = torch.ones


@pytest.mark.parametrize(
    ("update", "telling"),
    [
        (lora.ProjectionUpdate(A, B, 4), "one projection of an nn.MultiheadAttention"),
        (lora.ConvolutionUpdate(t(2, 3, 3), t(4, 2, 1), 4, groups=2), "a convolution with groups"),
        (lora.ConvolutionUpdate(t(2, 3, 3), t(4, 2, 1), 4, transposed=True), "a transposed convolution"),
        (LegacyTransposedUpdate(t(6, 12), t(15, 6), 2, weight_shape=(4, 5, 3, 3)), "a transposed convolution"),
        (lora.LegacyConvolutionUpdate(t(2, 8), t(4, 2), 2, weight_shape=(4, 2, 2, 2)), "a convolution with groups"),
        (lora.LoRAUpdate(t(2, 3, 4), t(5, 2), 4), "a bilinear layer"),
    ],
)
def test_what_others_compute_otherwise_is_refused_with_both_remedies(update, telling):
    message = rf"'q' is for {telling}.*kohya cannot hold it; format='safetensors' can"
    with pytest.raises(lora.FormatError, match=message) as caught:
        validation.common_form("q", update, "kohya")
    assert "--format safetensors can. Nothing was written." in caught.value.on_the_command_line()


@pytest.mark.parametrize(("names", "telling"), [("ba", ": a, b;"), ("dcba", ": a, b, c and 1 more;"), ("fedcba", "and 3 more")])
def test_what_has_no_place_is_named_as_far_as_it_is_short(names, telling):
    with pytest.raises(lora.FormatError, match=f"kohya has no place for biases.*{telling}"):
        validation.refuse("biases", names, "kohya")
    validation.refuse("biases", [], "kohya")


def test_an_adapter_that_could_not_be_read_again_is_not_sound():
    def adapter(update: lora.LoRAUpdate = UPDATE, **fields) -> lora.Adapter:
        return lora.Adapter(lora.LoRAConfig(), {"q": update}, **fields)

    validation.check_sound(adapter(metadata={"a": "b"}))
    with pytest.raises(lora.FormatError, match=r"The update of 'q' has factors of dtype torch.complex64.*Nothing was written"):
        validation.check_sound(adapter(lora.LoRAUpdate(A.cfloat(), B.cfloat(), 4)))
    for odd in ({"a": 1}, {"b": "x", "a": None}):
        with pytest.raises(lora.FormatError, match=r"The metadata 'a' are not text.*Nothing was written"):
            validation.check_sound(adapter(metadata=odd))
