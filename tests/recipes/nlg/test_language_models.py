"""Language models are loaded whole or not at all, and their parts are known."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from loralib import architectures
from loralib.errors import ConfigError, LoRAError, RunError
from loralib.recipes import model_loader
from loralib.recipes.nlg import language_models
from models import same_bits
from recipes.nlg.conftest import decoder_shape


@pytest.fixture
def copied(gpt2: Path, tmp_path: Path) -> Path:
    """The tiny GPT-2's folder, to be spoiled."""
    return shutil.copytree(gpt2, tmp_path / "copied")


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_whole_model_is_loaded_in_float32_with_a_tokenizer_that_can_pad(gpt2: Path, copied: Path, llama: Path) -> None:
    model, tokenizer = language_models.load_language_model(str(gpt2))
    stored = load_file(gpt2 / "model.safetensors")
    tensors = model.state_dict()
    assert all(same_bits(tensors[name], tensor) for name, tensor in stored.items())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    save_file({name: tensor.bfloat16() for name, tensor in stored.items()}, copied / "model.safetensors", {"format": "pt"})
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert language_models.load_language_model(str(copied))[0].dtype == torch.float32
    assert language_models.load_language_model(str(llama))[1].pad_token == "<unk>"


@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.weight", "transformer.wte.weight", "transformer.ln_f.bias"])
def test_a_checkpoint_that_lacks_a_weight_is_refused_by_name(copied: Path, name: str) -> None:
    stored = load_file(copied / "model.safetensors")
    del stored[name]
    save_file(stored, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=f"lacks weights of a GPT2LMHeadModel .*'{name}'.* would be drawn at random"):
        language_models.load_language_model(str(copied))


def test_a_checkpoint_that_lacks_nearly_everything_is_one_sentence(copied: Path) -> None:
    save_file({"other": torch.ones(1)}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"^[^\n]{0,400} and \d+ more\), which would be drawn at random[^\n]*$"):
        language_models.load_language_model(str(copied))


def test_an_encoder_is_refused(encoder: Path) -> None:
    with pytest.raises(RunError, match=r"lacks weights of a BertLMHeadModel|cannot be loaded as a causal language model"):
        language_models.load_language_model(str(encoder))


@pytest.mark.parametrize(
    "spoil",
    [
        shutil.rmtree,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "distilbert"}'),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100]),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace('"n_embd": 32', '"n_embd": 16')
        ),
    ],
    ids=[
        "no folder",
        "no weights",
        "config is not JSON",
        "config of nothing",
        "config of another kind",
        "weights cut",
        "no tokenizer",
        "tokenizer is not JSON",
        "weights of another width",
    ],
)
def test_a_folder_without_a_whole_model_is_one_sentence(copied: Path, spoil) -> None:
    spoil(copied)
    with pytest.raises(LoRAError, match=rf"^[^\n]*{copied}[^\n]*$"):
        language_models.load_language_model(str(copied))


def test_a_tokenizer_without_an_end_is_refused(copied: Path) -> None:
    path = copied / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "eos_token"}))
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        language_models.load_language_model(str(copied))


def test_messages_of_transformers_are_as_loud_after_as_before(gpt2: Path, tmp_path: Path) -> None:
    before = transformers.utils.logging.get_verbosity()
    language_models.load_language_model(str(gpt2))
    with pytest.raises(RunError):
        language_models.load_language_model(str(tmp_path))
    assert transformers.utils.logging.get_verbosity() == before


# --- dropout --------------------------------------------------------------------------------------------------------


def dropouts(model: nn.Module) -> set[float]:
    """All dropouts that the model's modules have, as modules or as numbers that a function is called with."""
    numbers = {
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    }
    return numbers | {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize("kind", architectures.DECODERS)
def test_dropout_reaches_every_one_of_the_model(kind: str) -> None:
    assert dropouts(decoder_shape(kind, 0.25)) == {0.25}
    assert dropouts(decoder_shape(kind, 0.0)) == {0.0}


def test_dropout_of_a_loaded_model(gpt2: Path) -> None:
    assert dropouts(language_models.load_language_model(str(gpt2), 0.3)[0]) == {0.3}
    assert dropouts(language_models.load_language_model(str(gpt2))[0]) == {0.0}
    assert dropouts(decoder_shape("gpt2")) == {0.1}


def test_a_model_without_dropout_refuses_one(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("mamba")
    with pytest.raises(ConfigError, match=r"^base_dropout=0.1: a mamba model is not known to have dropouts; leave it out"):
        language_models.set_dropouts(config, 0.1)
    language_models.set_dropouts(config, None)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^base_dropout=0: a mamba model"):
        language_models.load_language_model(str(tmp_path), 0.0)


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", architectures.DECODERS)
def test_the_blocks_are_all_that_is_between_the_embeddings_and_the_last_norm(kind: str) -> None:
    model = decoder_shape(kind)
    blocks = language_models.blocks(model)
    assert len(blocks) == 2
    inside = {id(parameter) for parameter in blocks.parameters()}
    outside = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in inside}
    assert all("embed" in name or "norm" in name or ".w" in name or "head" in name or "ln_f" in name for name in outside)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()}
    assert linear <= inside


def test_a_model_whose_blocks_are_not_known_says_what_to_do() -> None:
    model = decoder_shape("gpt2")
    model.config.n_layer = 3
    with pytest.raises(ConfigError, match="blocks of a gpt2 model are not known; use --method lora or full"):
        language_models.blocks(model)


@pytest.mark.parametrize(("width", "layers", "n", "trained"), [(1024, 24, 2, 25_192_448), (1024, 24, 1, 12_596_224)])
def test_the_last_two_blocks_of_gpt2_medium_are_the_papers_25_19_million(width: int, layers: int, n: int, trained: int) -> None:
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=16))
    language_models.freeze_all_but_last_blocks(model, n)
    left = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(left.values()) == trained
    assert {name.split(".")[2] for name in left} == {str(i) for i in range(layers - n, layers)}


def test_freezing_leaves_the_last_two_blocks_by_itself(gpt2: Path) -> None:
    model = decoder_shape("llama")
    language_models.freeze_all_but_last_blocks(model)
    assert all(parameter.requires_grad == (".layers." in name) for name, parameter in model.named_parameters())
    language_models.freeze_all_but_last_blocks(model, 1)
    assert all(parameter.requires_grad == (".layers.1." in name) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("kind", architectures.DECODERS)
def test_a_length_beyond_the_models_positions_is_refused(kind: str) -> None:
    model = decoder_shape(kind)
    model_loader.check_length(model.config, 40)
    with pytest.raises(ConfigError, match="max_length=41: the model takes at most 40 tokens"):
        model_loader.check_length(model.config, 41)


def test_a_model_without_a_number_of_positions_takes_any_length() -> None:
    config = transformers.BloomConfig(vocab_size=30, hidden_size=16, n_layer=1, n_head=2)
    model_loader.check_length(transformers.BloomForCausalLM(config).config, 99)


def test_an_encoder_is_not_a_causal_language_model(gpt2: Path, tmp_path: Path) -> None:
    """Transformers loads a BERT as one, which sees all tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(tokenizer), **shape))
    for part in (bert, tokenizer):
        part.save_pretrained(tmp_path / "bert")
    with pytest.raises(RunError, match="is not a causal language model: a BertLMHeadModel sees the tokens that come later"):
        language_models.load_language_model(str(tmp_path / "bert"))
    decoder = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=len(tokenizer), is_decoder=True, **shape))
    language_models.check_causal(decoder.train())
    assert decoder.training
