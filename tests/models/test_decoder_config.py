"""What is read from config.json, for published configs of transformers 4 and for those that transformers 5 writes."""

import math

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fusejax.common.cli import UserError
from fusejax.models.decoder.config import DecoderConfig, LinearScaling, Llama3Scaling, language_model
from fusejax.models.decoder.rotary import frequencies
from tests.models import tiny_checkpoints as tiny

# As published (transformers 4), without the keys that do not matter here.
LLAMA_32_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN_25_7B = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
# No tie_word_embeddings: transformers' default for the family says True.
GEMMA_2_9B = {
    "model_type": "gemma2",
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
MISTRAL_LARGE = {
    "model_type": "mistral",
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 12288,
    "intermediate_size": 28672,
    "num_attention_heads": 96,
    "num_hidden_layers": 88,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
QWEN_3_06B = {
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_3_1B = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
# Of text and images; what its text half leaves out is transformers' default.
GEMMA_3_4B = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
}


def test_llama():
    config = DecoderConfig.from_hf(LLAMA_32_1B)
    assert config.tie_embeddings
    assert config.pattern == (None,)
    assert config.num_layers == 16
    assert config.rope_theta == 500_000
    assert config.rope_scaling == Llama3Scaling(32, 1, 4, 8192)
    assert not config.qkv_bias


def test_qwen2():
    config = DecoderConfig.from_hf(QWEN_25_7B)
    assert config.qkv_bias
    assert config.pattern == (None,)
    assert config.head_dim == 128
    assert not config.tie_embeddings


def test_qwen2_with_a_window_in_its_upper_layers():
    values = QWEN_25_7B | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}
    assert DecoderConfig.from_hf(values | {"num_hidden_layers": 4}).windows == (None, None, None, 64)


def test_gemma2():
    config = DecoderConfig.from_hf(GEMMA_2_9B)
    assert config.tie_embeddings
    assert config.pattern == (4096, None)
    assert config.num_layers == 42
    assert (config.attention_softcap, config.logits_softcap) == (50, 30)
    assert config.embedding_scale == math.sqrt(3584)
    assert config.attention_scale == 1 / 16
    assert config.norm_offset == 1


def test_layers_after_the_last_whole_block_are_a_tail():
    config = DecoderConfig.from_hf(GEMMA_2_9B | {"num_hidden_layers": 5})
    assert (config.pattern, config.num_blocks, config.tail) == ((4096, None), 2, (4096,))
    config = DecoderConfig.from_hf(GEMMA_2_9B)
    assert (config.num_blocks, config.tail) == (21, ())


def test_mistral():
    assert DecoderConfig.from_hf(MISTRAL_LARGE).pattern == (None,)
    assert DecoderConfig.from_hf(MISTRAL_LARGE | {"sliding_window": 4096}).pattern == (4096,)


def test_qwen3():
    config = DecoderConfig.from_hf(QWEN_3_06B)
    assert config.head_norms
    assert not config.qkv_bias
    assert config.pattern == (None,)
    assert (config.head_dim, config.hidden_size // config.num_heads) == (128, 64)
    assert config.tie_embeddings


def test_gemma3():
    config = DecoderConfig.from_hf(GEMMA_3_1B)
    assert config.pattern == (512,) * 5 + (None,)
    assert (config.num_layers, config.num_blocks, config.tail) == (26, 4, (512, 512))
    assert config.head_norms
    assert config.norm_offset == 1
    assert config.attention_scale == 1 / 16
    assert config.embedding_scale == math.sqrt(1152)
    assert (config.attention_softcap, config.logits_softcap) == (None, None)
    assert (config.rope_theta, config.rope_scaling, config.local_rope_theta) == (1_000_000, None, 10_000)
    assert config.tie_embeddings


def test_gemma3_of_text_and_images():
    config = DecoderConfig.from_hf(GEMMA_3_4B)
    assert config.vocab_size == 262_208
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.num_blocks, config.tail) == (5, (1024,) * 4)
    assert (config.rope_theta, config.rope_scaling, config.local_rope_theta) == (1_000_000, LinearScaling(8), 10_000)
    text = language_model(GEMMA_3_4B)
    assert (text["model_type"], text["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
    assert (text["eos_token_id"], text["torch_dtype"]) == ([1, 106], "bfloat16")
    assert DecoderConfig.from_hf(text) == config
    with pytest.raises(UserError, match="model_type 'gemma3' without text_config"):
        DecoderConfig.from_hf({"model_type": "gemma3"})
    with pytest.raises(UserError, match="quantization_config"):
        DecoderConfig.from_hf(GEMMA_3_4B | {"quantization_config": {"bits": 4}})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not supported for gemma3_text"),
        ({"rope_parameters": {"rope_type": "default"}}, "not given for full_attention and sliding_attention"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}}, "of sliding_attention"),
    ],
)
def test_what_is_not_supported_of_gemma3_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        DecoderConfig.from_hf(GEMMA_3_1B | changes)


@pytest.mark.parametrize(
    "published", [LLAMA_32_1B, QWEN_25_7B, GEMMA_2_9B, MISTRAL_LARGE, QWEN_3_06B, GEMMA_3_1B, GEMMA_3_4B]
)
def test_what_transformers_5_writes_means_the_same(published):
    rewritten = transformers.AutoConfig.for_model(**published).to_dict()
    assert "rope_parameters" in language_model(rewritten)
    assert DecoderConfig.from_hf(rewritten) == DecoderConfig.from_hf(published)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_configs_of_the_test_checkpoints_are_told_apart(family):
    config = tiny.reference(family).config.to_dict()
    others = [tiny.reference(other).config.to_dict() for other in tiny.FAMILIES if other != family]
    assert DecoderConfig.from_hf(config) not in [DecoderConfig.from_hf(other) for other in others]


def test_every_family_has_a_test_checkpoint():
    """The tests of values, gradients, meshes and checkpoints all go through the same table."""
    with pytest.raises(UserError) as error:
        DecoderConfig.from_hf({"model_type": "none"})
    supported = str(error.value).partition("supported are ")[2].split(", ")
    assert sorted({config["model_type"] for config in tiny.CONFIGS.values()} | {"gemma3"}) == supported


def test_scaled_frequencies_at_full_size():
    config = transformers.AutoConfig.for_model(**LLAMA_32_1B)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    np.testing.assert_allclose(frequencies(DecoderConfig.from_hf(LLAMA_32_1B)), expected.numpy(), rtol=1e-6)
    config = transformers.AutoConfig.for_model(**GEMMA_3_4B).text_config
    expected, _ = ROPE_INIT_FUNCTIONS["linear"](config, layer_type="full_attention")
    np.testing.assert_allclose(frequencies(DecoderConfig.from_hf(GEMMA_3_4B)), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5"),
        ({"head_dim": 63}, "head_dim 63"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_type linear needs a number for factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"layer_types": ["sliding_attention"] * 16}, "layer_types"),
    ],
)
def test_what_is_not_supported_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        DecoderConfig.from_hf(LLAMA_32_1B | changes)


def test_layer_types_must_fit():
    with pytest.raises(UserError, match="each of 42 layers"):
        DecoderConfig.from_hf(GEMMA_2_9B | {"layer_types": ["full_attention"]})
    with pytest.raises(UserError, match="no sliding_window"):
        DecoderConfig.from_hf(GEMMA_2_9B | {"sliding_window": None})


def test_a_rotary_embedding_given_twice_must_be_the_same():
    """Transformers 5 writes `rope_parameters`; what is added beside it under the older name must not be passed over."""
    rewritten = transformers.AutoConfig.for_model(**QWEN_25_7B).to_dict()
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    with pytest.raises(UserError, match=r"rope_parameters .*default.* and rope_scaling .*yarn.* disagree"):
        DecoderConfig.from_hf(rewritten | {"rope_scaling": yarn})
    with pytest.raises(UserError, match=r"rope_theta 500000.0 and rope_parameters.rope_theta 1000000.0 disagree"):
        DecoderConfig.from_hf(rewritten | {"rope_theta": 500_000.0})
    linear = {"rope_type": "linear", "factor": 2.0}
    twice = rewritten | {"rope_parameters": linear | {"rope_theta": 1e6}, "rope_scaling": linear, "rope_theta": 1000000}
    assert DecoderConfig.from_hf(twice).rope_scaling == LinearScaling(2)
    with pytest.raises(UserError, match=r"disagree"):
        DecoderConfig.from_hf(twice | {"rope_scaling": linear | {"factor": 4.0}})


def test_a_rotary_embedding_given_twice_must_be_the_same_in_gemma3():
    rewritten = language_model(transformers.AutoConfig.for_model(**GEMMA_3_4B).to_dict())
    assert DecoderConfig.from_hf(rewritten | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    for changes in (
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        {"rope_local_base_freq": 1e6},
        {"rope_theta": 1e4},
    ):
        with pytest.raises(UserError, match="disagree"):
            DecoderConfig.from_hf(rewritten | changes)


def test_factors_that_would_divide_by_zero_are_refused():
    llama3 = LLAMA_32_1B["rope_scaling"] | {"high_freq_factor": 1.0}
    with pytest.raises(UserError, match="low_freq_factor is not below high_freq_factor"):
        DecoderConfig.from_hf(LLAMA_32_1B | {"rope_scaling": llama3})


def test_the_original_length_outside_of_the_rotary_embedding_must_be_the_same():
    """Transformers takes either, by family."""
    outside = LLAMA_32_1B | {"original_max_position_embeddings": 8192}
    assert DecoderConfig.from_hf(outside) == DecoderConfig.from_hf(LLAMA_32_1B)
    with pytest.raises(UserError, match=r"original_max_position_embeddings 4096 and .* 8192, disagree"):
        DecoderConfig.from_hf(LLAMA_32_1B | {"original_max_position_embeddings": 4096})
    scaling = {key: value for key, value in LLAMA_32_1B["rope_scaling"].items() if not key.startswith("original")}
    with pytest.raises(UserError, match=r"original_max_position_embeddings 8192 and .* 131072, disagree"):
        DecoderConfig.from_hf(outside | {"rope_scaling": scaling})
