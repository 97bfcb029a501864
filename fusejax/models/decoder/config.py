"""The shape of a decoder as plain values, read from a Hugging Face `config.json`.

The families differ only in these values: there is no subclass and no mention of a family beyond this file.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from fusejax.common.cli import UserError
from fusejax.common.small_files import (
    ANYTHING,
    FLAG,
    NULL,
    TEXT,
    Kind,
    check,
    either,
    list_of,
    number,
    object_of,
    shown,
    whole,
)

Activation = Literal["silu", "gelu_tanh"]

# What transformers assumes where a published config.json leaves a key out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "qwen2": {"hidden_act": "silu", "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"hidden_act": "silu", "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    "mistral": {"hidden_act": "silu", "sliding_window": 4096},
    "gemma2": {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 256,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 256,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""What transformers and vLLM call the decoder of each family."""

# Models of text and images, and which of the above their language model is.
_TEXT_HALVES = {"gemma3": "gemma3_text"}
# Keys that such a model has beside its `text_config`; where they are in both, these count.
_OF_THE_WHOLE = (
    "_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
)
_ACTIVATIONS: dict[Any, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Settings of these families that are not modelled: a checkpoint that turns one on would be computed wrongly.
_UNSUPPORTED = ("attention_bias", "mlp_bias", "attention_dropout", "use_bidirectional_attention", "quantization_config")
_MOST_LAYERS = 2**12
_ORIGINAL = "original_max_position_embeddings"
_SIZE = either(whole(1, 2**24), NULL)
_LENGTH = either(whole(1, 2**31 - 1), NULL)
_POSITIVE = number(0, 2**31, above=True)
_BASE = number(0, 1e18, above=True)
TOKEN_ID = either(whole(0, 2**31 - 1), NULL)
TOKEN_IDS = either(TOKEN_ID, list_of(whole(0, 2**31 - 1)))
"""One token or several, or none."""
KINDS: dict[str, Kind] = {
    "architectures": either(list_of(TEXT), NULL),
    "model_type": either(TEXT, NULL),
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_hidden_layers": either(whole(1, _MOST_LAYERS), NULL),
    "num_attention_heads": _SIZE,
    "num_key_value_heads": _SIZE,
    "head_dim": _SIZE,
    "max_position_embeddings": _LENGTH,
    _ORIGINAL: _LENGTH,
    "hidden_act": either(TEXT, NULL),
    "hidden_activation": either(TEXT, NULL),
    "rms_norm_eps": number(0, 1, above=True),
    "tie_word_embeddings": either(FLAG, NULL),
    "use_sliding_window": either(FLAG, NULL),
    "sliding_window": _LENGTH,
    "sliding_window_pattern": whole(1, _MOST_LAYERS),
    "max_window_layers": whole(0, 2**31 - 1),
    "layer_types": either(list_of(TEXT), NULL),
    "query_pre_attn_scalar": _POSITIVE,
    "attn_logit_softcapping": either(_POSITIVE, NULL),
    "final_logit_softcapping": either(_POSITIVE, NULL),
    "rope_theta": either(_BASE, NULL),
    "rope_local_base_freq": _BASE,
    "rope_scaling": either(object_of(ANYTHING), NULL),
    "rope_parameters": either(object_of(ANYTHING), NULL),
    "partial_rotary_factor": either(number(0, 1), NULL),
    "attention_bias": either(FLAG, NULL),
    "mlp_bias": either(FLAG, NULL),
    "attention_dropout": either(number(0, 1), NULL),
    "use_bidirectional_attention": either(FLAG, NULL),
    "quantization_config": either(object_of(ANYTHING), NULL),
    "bos_token_id": TOKEN_IDS,
    "eos_token_id": TOKEN_IDS,
    "pad_token_id": either(whole(-1, 2**31 - 1), NULL),  # -1 is none, in configurations of 2023
}
"""What the values of a `config.json` may be, whatever the family."""
_ROPE_KINDS: dict[str, Kind] = {
    "rope_type": TEXT,
    "type": TEXT,
    "rope_theta": either(_BASE, NULL),
    "factor": either(_POSITIVE, NULL),
    "low_freq_factor": either(_POSITIVE, NULL),
    "high_freq_factor": either(_POSITIVE, NULL),
    _ORIGINAL: either(_POSITIVE, NULL),
    "partial_rotary_factor": either(number(0, 1), NULL),
}


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3.1's scaling of the low rotary frequencies, to extend the context beyond the length of pretraining."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: float


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All rotary frequencies divided by one factor: positions that lie that much closer together (Gemma 3)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that fixes a decoder's parameters and arithmetic."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    """For each layer, its sliding window: how many tokens a token sees, itself included (None: all)."""
    activation: Activation = "silu"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    """Added to a norm's stored scale: 1 where checkpoints store the deviation from the identity (Gemma)."""
    post_norms: bool = False
    """Also normalise the outputs of attention and MLP, before they are added to the residual stream."""
    qkv_bias: bool = False
    head_norms: bool = False
    """Normalise each head's query and key, before the rotary embedding."""
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """Factor on query-key products; None: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | LinearScaling | None = None
    local_rope_theta: float | None = None
    """The base in layers with a sliding window, unscaled; None: base and scaling are the same in all layers."""
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd: rotary embedding needs pairs")

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def pattern(self) -> tuple[int | None, ...]:
        """The shortest sequence of windows whose repetition, cut off after the last layer, gives all layers.

        Gemma-2's is (4096, None). One such sequence is a block, the unit that the decoder stacks and scans.
        """
        lengths = range(1, self.num_layers + 1)
        return next(
            self.windows[:n] for n in lengths if (self.windows[:n] * self.num_layers)[: self.num_layers] == self.windows
        )

    @property
    def num_blocks(self) -> int:
        """Whole blocks."""
        return self.num_layers // len(self.pattern)

    @property
    def tail(self) -> tuple[int | None, ...]:
        """The windows of the layers after the last whole block: the beginning of the pattern, and often none."""
        return self.windows[self.num_blocks * len(self.pattern) :]

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "DecoderConfig":
        """Reads the dict of a Hugging Face `config.json`, of transformers 4 or 5.

        Raises:
          UserError: an unknown `model_type`, a missing key, a value of a wrong type or beyond all bounds, two keys that
            contradict each other, or a setting that this decoder does not model.
        """
        hf = language_model(hf)
        check(hf, KINDS)
        family = hf.get("model_type")
        if family not in _DEFAULTS:
            supported = ", ".join(sorted({*_DEFAULTS, *_TEXT_HALVES}))
            raise UserError(f"model_type {family!r} is not supported; supported are {supported}")
        for key in _UNSUPPORTED:
            if hf.get(key):
                raise UserError(f"{key} {hf[key]!r} is not supported")
        _check_bases(hf)
        values = _DEFAULTS[family] | hf
        hidden_size = _size(values, "hidden_size")
        num_heads = _size(values, "num_attention_heads")
        gemma = family in ("gemma2", "gemma3_text")
        activation = values["hidden_activation" if gemma else "hidden_act"]
        if activation not in _ACTIVATIONS:
            raise UserError(f"hidden_act {activation!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
        if family == "gemma3_text" and values.get("attn_logit_softcapping"):
            raise UserError(f"attn_logit_softcapping is not supported for {family}")
        return cls(
            vocab_size=_size(values, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(values, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=_size(values, "num_key_value_heads", num_heads if family == "llama" else None),
            head_dim=_size(values, "head_dim", hidden_size // num_heads),
            windows=_windows(family, values, _size(values, "num_hidden_layers")),
            activation=_ACTIVATIONS[activation],
            norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            norm_offset=1.0 if gemma else 0.0,
            post_norms=gemma,
            qkv_bias=family == "qwen2",
            head_norms=family in ("qwen3", "gemma3_text"),
            embedding_scale=math.sqrt(hidden_size) if gemma else 1.0,
            attention_scale=values["query_pre_attn_scalar"] ** -0.5 if gemma else None,
            attention_softcap=values.get("attn_logit_softcapping") if gemma else None,
            logits_softcap=values.get("final_logit_softcapping") if gemma else None,
            **(_rope_by_window(values) if family == "gemma3_text" else _rope(values)),
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        )


def language_model(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of the language model alone: `hf` itself, unless that is of a model of text and images.

    Raises:
      UserError: it is of such a model, but has no `text_config`.
    """
    check(hf, {"model_type": KINDS["model_type"]})
    if hf.get("model_type") not in _TEXT_HALVES:
        return hf
    family = _TEXT_HALVES[hf["model_type"]]
    text = hf.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"model_type {hf['model_type']!r} without text_config")
    outer = {key: hf[key] for key in _OF_THE_WHOLE if hf.get(key) is not None}
    return {**text, **outer, "architectures": [ARCHITECTURES[family]], "model_type": family}


def _size(values: dict[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise UserError(f"no {key}")
    check({key: value}, KINDS)
    return value


def _windows(family: str, values: dict[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Which layers attend within a sliding window, by each family's own convention."""
    window = values.get("sliding_window")
    if family == "llama" or (family in ("qwen2", "qwen3") and not values.get("use_sliding_window")):
        window = None
    if window is not None:
        window = _size(values, "sliding_window")
    if family in ("gemma2", "gemma3_text"):
        period = 2 if family == "gemma2" else _size(values, "sliding_window_pattern")
        default = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(num_layers)]
    else:
        full = num_layers if window is None else values["max_window_layers"] if family in ("qwen2", "qwen3") else 0
        default = ["full_attention" if layer < full else "sliding_attention" for layer in range(num_layers)]
    layer_types = values.get("layer_types") or default
    if family in ("llama", "mistral") and layer_types != default:
        raise UserError(f"layer_types that differ between layers are not supported for {family}")
    if len(layer_types) != num_layers or not set(layer_types) <= {"sliding_attention", "full_attention"}:
        raise UserError(f"layer_types must name sliding_attention or full_attention for each of {num_layers} layers")
    if window is None and "sliding_attention" in layer_types:
        raise UserError("layer_types has sliding_attention, but there is no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary embedding: under two keys in transformers 4, one in transformers 5."""
    parameters, scaling = values.get("rope_parameters"), values.get("rope_scaling")
    if parameters and scaling:
        _check_agreement(parameters, scaling, values)
    theta, scaling = _base_and_scaling(parameters or scaling or {}, values)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _rope_by_window(values: dict[str, Any]) -> dict[str, Any]:
    """As `_rope`, for a family whose layers with a sliding window have a base of their own."""
    kinds = values.get("rope_parameters") or {}
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise UserError(f"rope_parameters {shown(kinds)} are not given for full_attention and sliding_attention")
    check(kinds, dict.fromkeys(kinds, either(object_of(ANYTHING), NULL)))
    rope = _rope(values | {"rope_parameters": kinds.get("full_attention")})
    local_theta, local_scaling = _base_and_scaling(
        kinds.get("sliding_attention") or {}, values | {"rope_theta": values["rope_local_base_freq"]}
    )
    if local_scaling is not None:
        raise UserError(f"rotary embedding {kinds['sliding_attention']} of sliding_attention is not supported")
    return rope | {"local_rope_theta": local_theta}


def _check_agreement(parameters: dict[str, Any], scaling: dict[str, Any], values: dict[str, Any]) -> None:
    """Refuses a `rope_scaling` that was added to a configuration with `rope_parameters`, or the other way round.

    Whichever of them is taken, some programs take the other.
    """
    if _rope_type(parameters) == _rope_type(scaling):
        _, one = _base_and_scaling(parameters, values)
        _, other = _base_and_scaling(scaling, values)
        if one == other:
            return
    raise UserError(
        f"rope_parameters {shown(parameters)} and rope_scaling {shown(scaling)} disagree: keep the one that is meant"
    )


def _check_bases(hf: dict[str, Any]) -> None:
    """Refuses a rotary base that is given twice and differs: `rope_theta` edited beside `rope_parameters`, say."""
    parameters, scaling = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    full, local = parameters.get("full_attention"), parameters.get("sliding_attention")
    for key, places in (
        ("rope_theta", {"rope_parameters": full or parameters, "rope_scaling": scaling}),
        ("rope_local_base_freq", {"rope_parameters": local or {}}),
    ):
        given = {key: hf.get(key)} | {
            f"{name}.rope_theta": place.get("rope_theta") for name, place in places.items() if isinstance(place, dict)
        }
        given = {name: base for name, base in given.items() if base is not None}
        if len(set(map(repr, map(_number, given.values())))) > 1:
            listed = " and ".join(f"{name} {shown(base)}" for name, base in given.items())
            raise UserError(f"{listed} disagree: keep the one that is meant")


def _number(value: Any) -> Any:
    return float(value) if _BASE.accepts(value) else value


def _rope_type(rope: dict[str, Any]) -> str:
    check(rope, _ROPE_KINDS)
    kinds = [rope[key] for key in ("rope_type", "type") if key in rope]
    if len(set(kinds)) > 1:
        raise UserError(f"rotary embedding {shown(rope)}: rope_type and type disagree")
    return kinds[0] if kinds else "default"


def _base_and_scaling(
    rope: dict[str, Any], values: dict[str, Any]
) -> tuple[float, Llama3Scaling | LinearScaling | None]:
    """What `rope` says, and where it says nothing, the whole configuration."""
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"rotary embedding {shown(rope)}: different for kinds of layers, which is not supported here")
    kind = _rope_type(rope)
    if kind not in _SCALINGS:
        raise UserError(f"rotary embedding {shown(rope)} is not supported; supported are {', '.join(_SCALINGS)}")
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise UserError(f"partial_rotary_factor {partial} is not supported")
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    rope = {_ORIGINAL: values.get("max_position_embeddings")} | rope
    make, keys = _SCALINGS[kind]
    if _ORIGINAL in keys and values.get(_ORIGINAL) not in (None, rope[_ORIGINAL]):
        raise UserError(
            f"{_ORIGINAL} {values[_ORIGINAL]} and that of the rotary embedding, {rope[_ORIGINAL]}, disagree"
        )
    for key in keys:
        if rope.get(key) is None:
            raise UserError(f"rope_type {kind} needs a number for {key}, found {shown(rope.get(key))}")
    scaling = make(*(float(rope[key]) for key in keys))
    if isinstance(scaling, Llama3Scaling) and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise UserError(f"rotary embedding {shown(rope)}: low_freq_factor is not below high_freq_factor")
    return theta, scaling


# rope_type -> what it is here, and the keys of its arguments.
_SCALINGS: dict[str, tuple[Callable[..., Llama3Scaling | LinearScaling | None], tuple[str, ...]]] = {
    "default": (lambda: None, ()),
    "linear": (LinearScaling, ("factor",)),
    "llama3": (
        Llama3Scaling,
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    ),
}
