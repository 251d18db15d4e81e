"""What is known of named models, as data: what their layers do, what their configurations call things, the paper's shapes.

Nothing here is imported from transformers or diffusers, and nothing is computed but `is_embedding`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# --- what layers do: by model type and role, how the names of such layers end ------------------------------------------

ROLES = ("query", "key", "value", "output", "mlp")

_ATTENTION = {"query": ("query",), "key": ("key",), "value": ("value",)}
_DENSE = {"output": ("attention.output.dense",), "mlp": ("intermediate.dense", "output.dense")}
_BERT = _ATTENTION | _DENSE
_PROJECTIONS = {"query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",)}
_LLAMA = _PROJECTIONS | {"output": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}

ENCODERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "albert": _ATTENTION | {"output": ("attention.dense",), "mlp": ("ffn", "ffn_output")},
    "bert": _BERT,
    "deberta-v2": {"query": ("query_proj",), "key": ("key_proj",), "value": ("value_proj",)} | _DENSE,
    "distilbert": {
        "query": ("q_lin",),
        "key": ("k_lin",),
        "value": ("v_lin",),
        "output": ("out_lin",),
        "mlp": ("lin1", "lin2"),
    },
    "electra": _BERT,
    "mpnet": {"query": ("attn.q",), "key": ("attn.k",), "value": ("attn.v",), "output": ("attn.o",), "mlp": _DENSE["mlp"]},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
DECODERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gpt2": {"output": ("attn.c_proj",), "mlp": ("mlp.c_fc", "mlp.c_proj")},
    "gpt_neo": _PROJECTIONS | {"output": ("out_proj",), "mlp": ("mlp.c_fc", "mlp.c_proj")},
    "gptj": _PROJECTIONS | {"output": ("out_proj",), "mlp": ("fc_in", "fc_out")},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "opt": _PROJECTIONS | {"output": ("out_proj",), "mlp": ("fc1", "fc2")},
    "phi": _PROJECTIONS | {"output": ("self_attn.dense",), "mlp": ("fc1", "fc2")},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
FUSED: Mapping[str, tuple[str, tuple[str, ...]]] = {"gpt2": ("attn.c_attn", ("query", "key", "value"))}

# --- what the configurations of transformers call things ---------------------------------------------------------------

HEAD_DROPOUT = {  # by model type: what the config calls the dropout before the classifier
    "albert": "classifier_dropout_prob",
    "bert": "classifier_dropout",
    "deberta-v2": "cls_dropout",
    "distilbert": "seq_classif_dropout",
    "electra": "classifier_dropout",
    "roberta": "classifier_dropout",
    "xlm-roberta": "classifier_dropout",
}
ATTENTION_DROPOUT = dict.fromkeys(ENCODERS, "attention_probs_dropout_prob") | {"distilbert": "attention_dropout"}

COUNT_FROM_PADDING = {  # models whose positions start behind the padding id
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
DECODER_DROPOUTS = (  # what configs call the dropouts of a model, whatever its type
    "attention_dropout",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embed_dropout",
    "hidden_dropout",
    "resid_dropout",
    "resid_pdrop",
)

PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # of nn.MultiheadAttention, in the order of its packed weight

# --- how weights are stored --------------------------------------------------------------------------------------------

WITH_CONV1D = {  # model types of transformers with linear layers that store their weight as (in, out), and those layers
    "gpt2": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "openai-gpt": ("c_attn", "c_proj", "c_fc"),
    "imagegpt": ("c_attn", "q_attn", "c_proj", "c_fc"),
    "decision_transformer": ("c_attn", "q_attn", "c_proj", "c_fc"),
}
LANGUAGE_MODELS = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForPreTraining",
    "DoubleHeadsModel",
)
OUTPUT_LAYERS = {  # the output layer of language models whose name does not begin with one of these is lm_head
    "Bert": "cls.predictions.decoder",
    "Roberta": "lm_head.decoder",
    "XLMRoberta": "lm_head.decoder",
    "DistilBert": "vocab_projector",
    "Electra": "generator_lm_head",
    "Albert": "predictions.decoder",
}
TASK_CLASSES = {  # what PEFT calls a task whose models have a head of their own, and how the names of their classes end
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
CLASS_NAMES = {  # by model type, how the names of classes begin, where a base model's own class may not tell it
    "albert": "Albert",
    "bert": "Bert",
    "cohere_compass_text": "CohereCompassText",
    "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "gemma3_text": "Gemma3Text",
    "mpnet": "MPNet",
    "qwen3_5_text": "Qwen3_5Text",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
}
CLASSIFIERS = (  # the last layers of heads that classify, one output a class
    "classifier",
    "classifier.out_proj",
    "classification_head.out_proj",
    "logits_proj",
    "score",
)
# fmt: off
EMBEDDINGS = frozenset({  # last parts of the names of embeddings in models
    "emb", "embed", "embed_in", "embed_positions", "embed_tokens", "embedding", "embeddings", "position_embedding",
    "position_embeddings", "shared", "tok_embeddings", "token_embedding", "token_type_embeddings", "word_embeddings",
    "wpe", "wte",
})
# fmt: on


def is_embedding(layer: str) -> bool:
    """Whether a layer of this name is an embedding, where nothing but its name tells.

    >>> is_embedding("model.embed_tokens"), is_embedding("model.q_proj")
    (True, False)
    """
    return layer.rpartition(".")[2] in EMBEDDINGS


# --- what transformers 5 calls parts of a model in memory, next to what files on the hub call them ---------------------------

_OF_LLAVA = {  # LLaVA, Gemma 3, PaliGemma, Mistral 3, InternVL, Mllama, Qwen2-Audio and others
    "model.language_model": "language_model.model",
    "model.vision_tower": "vision_tower",
    "model.vision_model": "vision_model",
    "model.audio_tower": "audio_tower",
    "model.multi_modal_projector": "multi_modal_projector",
}
_OF_BERT = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
FILE_NAMES: tuple[Mapping[str, str], ...] = (  # `#`: a number
    _OF_LLAVA | {"lm_head": "language_model.lm_head"},
    _OF_LLAVA,
    {"model.language_model": "model", "model.visual": "visual"},  # Qwen2-VL and Qwen2.5-VL
    {  # Mixtral and others
        f"mlp.{old}": f"block_sparse_moe.{new}"
        for old, new in {
            **{"experts.#.gate_proj": "experts.#.w1", "experts.#.up_proj": "experts.#.w3"},
            **{"experts.#.down_proj": "experts.#.w2", "gate": "gate"},
        }.items()
    },
    {f"encoder.layer.#.{old}": f"encoder.layer.#.{new}" for old, new in _OF_BERT.items()},  # DINOv2
    {  # ViT, DeiT, BEiT and others
        f"layers.#.{old}": f"encoder.layer.#.{new}"
        for old, new in (_OF_BERT | {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}).items()
    },
)

# --- weights that are read without the layers being called ---------------------------------------------------------------

# fmt: off
_READ = {  # layers by their names in the modules that read their weights, and the classes of those modules
    "Conv2d_0": "FirDownsample2D FirUpsample2D",
    "c_proj": "HunyuanDiTAttentionPool",
    "classifier": "LongcatFlashTopkRouter",
    "cls_embed": "Sam3GeometryEncoder Sam3LiteTextGeometryEncoder",
    "conv": "Lfm2MoeShortConv Lfm2ShortConv Lfm3ShortConv",
    "conv1d": (
        "BailingHybridDeltaAttention BambaMixer FalconH1Mixer FalconMambaMixer Glm5NextTextLinearAttention "
        "GraniteMoeHybridMambaLayer Inkling2ShortConvolution InklingShortConvolution JambaMambaMixer "
        "KimiLinearDeltaAttention Mamba2Mixer MambaMixer NemotronHMamba2Mixer OlmoHybridGatedDeltaNet "
        "Qwen3NextGatedDeltaNet Qwen3_5GatedDeltaNet Qwen3_5MoeGatedDeltaNet Qwen4ExpTextGatedDeltaNet Zamba2MambaMixer "
        "ZambaMambaMixer"
    ),
    "conv_1d": "RecurrentGemmaRecurrentBlock",
    "correction_coefs": "Gemma3nTextAltUp",
    "decoder dense": "MobileBertLMPredictionHead",
    "dt_proj": "FalconMambaMixer JambaMambaMixer MambaMixer",
    "embed_positions": "AudioFlamingo3Encoder MossTranscribeDiarizeAudioModel Qwen2AudioEncoder VoxtralEncoder",
    "embedding": "Emu3VQVAEVectorQuantizer GlmImageVQVAEVectorQuantizer",
    "hq_token": "SamHQMaskDecoder",
    "iou_token mask_tokens": (
        "EdgeTamMaskDecoder EdgeTamVideoMaskDecoder Sam2MaskDecoder Sam2VideoMaskDecoder Sam3TrackerMaskDecoder "
        "Sam3TrackerVideoMaskDecoder SamHQMaskDecoder SamMaskDecoder"
    ),
    "k_linear": "DabDetrMHAttentionMap",
    "k_proj": (
        "ConditionalDetrMHAttentionMap DetrMHAttentionMap HunyuanDiTAttentionPool MaskFormerDetrMHAttentionMap "
        "MultiheadAttention WavLMAttention"
    ),
    "kernel": "TDNNLayer",
    "level_embed": "Mask2FormerTransformerModule OneFormerTransformerModule",
    "ngram_embeddings": "ProphetNetDecoder",
    "no_mask_embed not_a_point_embed": (
        "EdgeTamPromptEncoder EdgeTamVideoPromptEncoder Sam2PromptEncoder Sam2VideoPromptEncoder Sam3TrackerPromptEncoder "
        "Sam3TrackerVideoPromptEncoder SamHQPromptEncoder SamPromptEncoder"
    ),
    "obj_score_token": (
        "EdgeTamMaskDecoder EdgeTamVideoMaskDecoder Sam2MaskDecoder Sam2VideoMaskDecoder Sam3TrackerMaskDecoder "
        "Sam3TrackerVideoMaskDecoder"
    ),
    "out_proj": "MultiheadAttention WavLMAttention",
    "patterns query_refpoint_embeddings": "DabDetrModel",
    "position_embedding": (
        "Cosmos3EdgeVisionEmbeddings Glm4vMoeVisionEmbeddings Glm4vVisionEmbeddings GlmImageVisionEmbeddings "
        "HunYuanVLVisionPatchEmbed Siglip2VisionEmbeddings"
    ),
    "proj": "ChannelsProj",
    "presence_token query_embed": "Sam3DetrDecoder Sam3LiteTextDetrDecoder",
    "prompt_ctx": "OneFormerTextMapper",
    "q_proj v_proj": "HunyuanDiTAttentionPool MultiheadAttention WavLMAttention",
    "proj qkv": "ShiftedWindowAttention",
    "project_in project_out": "_AceStepResidualFSQ",
    "queries_embedder": "Mask2FormerTransformerModule MaskFormerTransformerModule OneFormerTransformerModule",
    "queries_features": "Mask2FormerTransformerModule",
    "query": "EomtDinov3ForUniversalSegmentation EomtForUniversalSegmentation VideomtForUniversalSegmentation",
    "query_1024_resolution query_768_resolution": "DeepseekOcr2VisionModel",
    "query_feat reference_point_embed": "LwDetrModel RfDetrModel",
    "query_position_embeddings": (
        "ConditionalDetrModel DeformableDetrModel DetrModel GroundingDinoModel MMGroundingDinoModel TableTransformerModel"
    ),
    "reference_points": "GroundingDinoModel Sam3DetrDecoder Sam3LiteTextDetrDecoder",
    "rel_pos_bias": "LayoutLMv2Encoder LayoutLMv3Encoder PPDocLayoutV2ReadingOrderEncoder",
    "rel_pos_x_bias rel_pos_y_bias": "LayoutLMv2Encoder LayoutLMv3Encoder",
    "shared": (
        "BartPreTrainedModel BigBirdPegasusPreTrainedModel BlenderbotPreTrainedModel BlenderbotSmallPreTrainedModel "
        "LEDPreTrainedModel LongT5PreTrainedModel M2M100PreTrainedModel MBartPreTrainedModel MT5PreTrainedModel "
        "MarianPreTrainedModel MvpPreTrainedModel NllbMoePreTrainedModel PLBartPreTrainedModel PegasusPreTrainedModel "
        "PegasusXPreTrainedModel Pop2PianoPreTrainedModel SeamlessM4TPreTrainedModel SeamlessM4Tv2PreTrainedModel "
        "SwitchTransformersPreTrainedModel T5PreTrainedModel UMT5PreTrainedModel UdopPreTrainedModel"
    ),
    "tgt_embed": "OmDetTurboDecoder",
    "unembedding_projection": "NeoMMEForMaskedLM",
}
_READ_BY_KERNELS = {  # the same where a fused kernel on a GPU does so and the plain code calls the layer
    "out_proj x_proj": "FalconMambaMixer MambaMixer",
    "out_proj": "BambaMixer FalconH1Mixer GraniteMoeHybridMambaLayer Mamba2Mixer NemotronHMamba2Mixer Zamba2MambaMixer",
}
_ON_REQUEST = {"contact_head": "EsmModel"}  # layers that the forward pass does not call
_READ_WITH_Q_BIAS = {"qkv": "Attention BeitAttention EvaAttention WindowAttention"}  # the same in those that have a `q_bias`
_INTERLEAVED = {  # fused projections whose rows alternate between query, key and value, head by head
    "c_attn": "GPTBigCodeAttention",
    "in_proj": "DisentangledSelfAttention",
    "in_proj_ba in_proj_qkvz": "Qwen3NextGatedDeltaNet",
    "qkv_proj": "CodeGenAttention MiniMaxLightningAttention",
    "query_key_value": (
        "BloomAttention FalconAttention FalconFlashAttention2 GPTNeoXAttention GPTNeoXJapaneseAttention PersimmonAttention"
    ),
}
_GROUPED = {"Wqkv": "DbrxAttention", "qkv_proj": "Phi3Attention Phi4MultimodalAttention"}  # fewer heads of key and value
# fmt: on


def _by_class(table: Mapping[str, str]) -> Mapping[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for layers, classes in table.items():
        for name in classes.split():
            found[name] = found.get(name, frozenset()) | frozenset(layers.split())
    return found


LIBRARIES = frozenset(  # whose classes the tables name
    {"diffusers", "esm", "fairseq", "timm", "torchvision", "transformers", "transformers_modules"}
)
READ_DIRECTLY = _by_class(_READ)
READ_WITH_Q_BIAS = _by_class(_READ_WITH_Q_BIAS)
READ_BY_KERNELS = _by_class(_READ_BY_KERNELS)
ON_REQUEST = _by_class(_ON_REQUEST)
INTERLEAVED = _by_class(_INTERLEAVED)
GROUPED = _by_class(_GROUPED)

# --- what is a linear layer by its class, and none to adapt by its place ---------------------------------------------------

AFFINE = frozenset(  # classes of linear layers with a forward of their own that computes W·x + b
    {
        "diffusers.models.lora.LoRACompatibleLinear",
        "transformers.models.falcon.modeling_falcon.FalconLinear",
        "transformers.pytorch_utils.Conv1D",
    }
)
EXPERTS_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")  # of transformers, that multiply by operations of torch
EXPERT_PARAMETERS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")  # in the order in which modules have them
WITH_TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})  # stored as (in, out)
ACTIVE_EXPERTS = (  # what configs call the number of experts that a token is sent to
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k"),
    *("top_k_experts", "router_topk"),
)
ROUTERS = frozenset({"Llama4Router", "PhimoeTopKRouter"})  # linear layers of LIBRARIES that return several tensors
CHOOSERS = frozenset(  # modules of LIBRARIES that choose positions to attend to, which lets no gradient through
    {
        *("AXK2Indexer", "DeepseekV32Indexer", "DeepseekV4Indexer", "Dots3NoteTextIndexer", "Glm5NextTextIndexer"),
        *("GlmMoeDsaIndexer", "HYV4Indexer", "MiniMaxM3VLIndexer", "MistralLarge4TextIndexer", "Qwen4ExpTextQSAIndexer"),
    }
)
ADAPTERS = {  # modules of other libraries that hold adapters, and which of their children do not belong to those
    "peft.tuners.tuners_utils.BaseTunerLayer": frozenset({"base_layer"}),
    "peft.utils.other.AuxiliaryTrainingWrapper": frozenset[str](),
    "torchtune.modules.peft.lora.LoRALinear": frozenset[str](),
    "diffusers.models.lora.LoRALinearLayer": frozenset[str](),
    "diffusers.models.lora.LoRAConv2dLayer": frozenset[str](),
}
FRESH_HEADS = (  # how classes of transformers end whose head starts at random when a pretrained body is loaded
    "ForAudioClassification",
    "ForAudioFrameClassification",
    "ForImageClassification",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForQuestionAnswering",
    "ForQuestionAnsweringSimple",
    "ForSemanticSegmentation",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForVideoClassification",
    "ForXVector",
)

# --- learning rates -----------------------------------------------------------------------------------------------------

WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # what configurations call the width of hidden states
_LLAMA_TYPES = ("llama", "llama4_text", "mllama_text_model")
# fmt: off
_QWEN_TYPES = (
    "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3", "qwen3_moe", "qwen3_next",
    "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_omni_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text",
)
# fmt: on
RATE_EXPONENTS = {"Llama": 0.781, "Qwen": 0.0775}  # how the best rate falls with the width: ~ (1 / width) ** exponent
RATE_FAMILIES = dict.fromkeys(_LLAMA_TYPES, "Llama") | dict.fromkeys(_QWEN_TYPES, "Qwen")  # by model type of the text model

# --- diffusers ----------------------------------------------------------------------------------------------------------

# fmt: off
COMPONENTS = (
    "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "transformer_ref", "prior",
    "connectors", "text_conditioner",
)
ROOTS = frozenset({  # what the modules are called that lie in no other, in diffusers' UNet
    "add_embedding", "class_embedding", "conv_in", "conv_out", "down_blocks", "encoder_hid_proj", "mid_block", "time_embedding",
    "up_blocks",
})
# fmt: on

# --- the models of the LoRA paper ---------------------------------------------------------------------------------------

_ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DEBERTA = {
    "vocab_size": 128_100,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _encoder(kind: str, common: Mapping[str, Any], *sizes: int) -> tuple[str, dict[str, Any]]:
    return kind, {**common, **dict(zip(_SIZES, sizes, strict=True))}


def _gpt2(width: int, layers: int, heads: int) -> tuple[str, dict[str, Any]]:
    return "gpt2", {"n_embd": width, "n_layer": layers, "n_head": heads}


PUBLISHED: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "roberta-base": _encoder("roberta", _ROBERTA, 768, 12, 12, 3072),
        "roberta-large": _encoder("roberta", _ROBERTA, 1024, 24, 16, 4096),
        "deberta-v2-xxlarge": _encoder("deberta-v2", _DEBERTA, 1536, 48, 24, 6144),
        "gpt2": _gpt2(768, 12, 12),
        "gpt2-medium": _gpt2(1024, 24, 16),
        "gpt2-large": _gpt2(1280, 36, 20),
        "gpt2-xl": _gpt2(1600, 48, 25),
        "gpt3": ("gpt2", {"n_embd": 12_288, "n_layer": 96, "n_head": 96, "n_positions": 2048}),  # 2005.14165, table 2.1
    }
)
PAPER_ENCODERS = {
    ("roberta", 768, 12): "roberta-base",
    ("roberta", 1024, 24): "roberta-large",
    ("deberta-v2", 1536, 48): "deberta-v2-xxlarge",
}  # by model type, width and layers
PAPER_DECODERS = {("gpt2", 1024, 24): "gpt2-medium", ("gpt2", 1280, 36): "gpt2-large"}


def short_name(model: str) -> str:
    """The name by which `PUBLISHED` knows a model: without folders or owner, in lower case.

    >>> short_name("FacebookAI/roberta-base"), short_name("models/GPT2/")
    ('roberta-base', 'gpt2')
    """
    return model.rstrip("/").rpartition("/")[2].lower()
