"""The shape of a decoder as plain values, read from a Hugging Face `config.json`.

The four families differ only in these values: there is no subclass and no mention of a family beyond this file.
"""

import dataclasses
import math
from typing import Any, Literal

from fusejax.common.cli import UserError

Activation = Literal["silu", "gelu_tanh"]

# What transformers assumes where a published config.json leaves a key out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "qwen2": {"hidden_act": "silu", "sliding_window": 4096, "max_window_layers": 28},
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
}
_ACTIVATIONS: dict[Any, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Settings of these families that are not modelled: a checkpoint that turns one on would be computed wrongly.
_UNSUPPORTED = ("attention_bias", "mlp_bias", "attention_dropout", "use_bidirectional_attention", "quantization_config")


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3.1's scaling of the low rotary frequencies, to extend the context beyond the length of pretraining."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: float


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
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """Factor on query-key products; None: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
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
        """The shortest sequence of windows whose repetition gives all layers: Gemma-2's is (4096, None).

        One such sequence is a block, the unit that the decoder stacks and scans.
        """
        lengths = (n for n in range(1, self.num_layers + 1) if self.num_layers % n == 0)
        return next(self.windows[:n] for n in lengths if self.windows[:n] * (self.num_layers // n) == self.windows)

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "DecoderConfig":
        """Reads the dict of a Hugging Face `config.json`, of transformers 4 or 5.

        Raises:
          UserError: an unknown `model_type`, a missing key, or a setting that this decoder does not model.
        """
        family = hf.get("model_type")
        if family not in _DEFAULTS:
            raise UserError(f"model_type {family!r} is not supported; supported are {', '.join(sorted(_DEFAULTS))}")
        for key in _UNSUPPORTED:
            if hf.get(key):
                raise UserError(f"{key} {hf[key]!r} is not supported")
        values = _DEFAULTS[family] | hf
        hidden_size = _size(values, "hidden_size")
        num_heads = _size(values, "num_attention_heads")
        gemma = family == "gemma2"
        activation = values["hidden_activation" if gemma else "hidden_act"]
        if activation not in _ACTIVATIONS:
            raise UserError(f"hidden_act {activation!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
        theta, scaling = _rope(values)
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
            embedding_scale=math.sqrt(hidden_size) if gemma else 1.0,
            attention_scale=values["query_pre_attn_scalar"] ** -0.5 if gemma else None,
            attention_softcap=values["attn_logit_softcapping"] if gemma else None,
            logits_softcap=values["final_logit_softcapping"] if gemma else None,
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        )


def _size(values: dict[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise UserError(f"no {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{key} {value!r} is not a positive integer")
    return value


def _windows(family: str, values: dict[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Which layers attend within a sliding window, by each family's own convention."""
    window = values.get("sliding_window")
    if family == "llama" or (family == "qwen2" and not values.get("use_sliding_window")):
        window = None
    if window is not None:
        window = _size(values, "sliding_window")
    if family == "gemma2":
        default = [("sliding_attention", "full_attention")[layer % 2] for layer in range(num_layers)]
    else:
        full = num_layers if window is None else values["max_window_layers"] if family == "qwen2" else 0
        default = ["full_attention" if layer < full else "sliding_attention" for layer in range(num_layers)]
    layer_types = values.get("layer_types") or default
    if family in ("llama", "mistral") and layer_types != default:
        raise UserError(f"layer_types that differ between layers are not supported for {family}")
    if len(layer_types) != num_layers or not set(layer_types) <= {"sliding_attention", "full_attention"}:
        raise UserError(f"layer_types must name sliding_attention or full_attention for each of {num_layers} layers")
    if window is None and "sliding_attention" in layer_types:
        raise UserError("layer_types has sliding_attention, but there is no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope(values: dict[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Base and scaling of the rotary embedding: under two keys in transformers 4, one in transformers 5."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if kind not in ("default", "llama3") or any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"rotary embedding {rope} is not supported; supported are rope_type default and llama3")
    if partial not in (None, 1, 1.0):
        raise UserError(f"partial_rotary_factor {partial} is not supported")
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    if kind == "default":
        return theta, None
    rope = {"original_max_position_embeddings": values.get("max_position_embeddings")} | rope
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for key in keys:
        if not isinstance(rope.get(key), int | float):
            raise UserError(f"rope_type llama3 needs a number for {key}, found {rope.get(key)!r}")
    return theta, Llama3Scaling(*(float(rope[key]) for key in keys))
