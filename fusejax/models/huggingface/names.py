"""The table of parameter names: ours beside Hugging Face's, read in both directions.

Both have the same arrays, linear maps as [outputs, inputs] with heads flattened. But Hugging Face stores the arrays of
each layer separately, and here they are stacked.
"""

import dataclasses
import itertools

from fusejax.models.decoder.config import DecoderConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of our parameters and the tensors that it is made of."""

    path: str
    """Our name, as `decoder.named_parameters` gives it."""
    hf_names: tuple[str, ...]
    """Hugging Face's: one tensor, or for a stacked parameter one for each block, in order."""
    hf_shape: Shape
    """Shape of one such tensor."""
    stacked: bool

    @property
    def shape(self) -> Shape:
        return (len(self.hf_names),) * self.stacked + self.hf_shape


def parameters(config: DecoderConfig) -> list[Parameter]:
    """The table for one decoder: every parameter, and every tensor of its checkpoints, exactly once."""
    vocab, width, inner = config.vocab_size, config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: list[tuple[str, str, Shape]] = [
        ("attention_norm.scale", "input_layernorm.weight", (width,)),
        ("attention.query.weight", "self_attn.q_proj.weight", (heads, width)),
        ("attention.key.weight", "self_attn.k_proj.weight", (kv_heads, width)),
        ("attention.value.weight", "self_attn.v_proj.weight", (kv_heads, width)),
        ("attention.output.weight", "self_attn.o_proj.weight", (width, heads)),
        ("mlp.gate.weight", "mlp.gate_proj.weight", (inner, width)),
        ("mlp.up.weight", "mlp.up_proj.weight", (inner, width)),
        ("mlp.down.weight", "mlp.down_proj.weight", (width, inner)),
    ]
    if config.qkv_bias:
        layer += [
            ("attention.query.bias", "self_attn.q_proj.bias", (heads,)),
            ("attention.key.bias", "self_attn.k_proj.bias", (kv_heads,)),
            ("attention.value.bias", "self_attn.v_proj.bias", (kv_heads,)),
        ]
    if config.head_norms:
        layer += [
            ("attention.query_norm.scale", "self_attn.q_norm.weight", (config.head_dim,)),
            ("attention.key_norm.scale", "self_attn.k_norm.weight", (config.head_dim,)),
        ]
    if config.post_norms:
        layer += [
            ("post_attention_norm.scale", "post_attention_layernorm.weight", (width,)),
            ("mlp_norm.scale", "pre_feedforward_layernorm.weight", (width,)),
            ("post_mlp_norm.scale", "post_feedforward_layernorm.weight", (width,)),
        ]
    else:  # here `post_attention_layernorm` is the norm before the MLP
        layer += [("mlp_norm.scale", "post_attention_layernorm.weight", (width,))]

    table = [Parameter("embedder.embedding", ("model.embed_tokens.weight",), (vocab, width), stacked=False)]
    period = len(config.pattern)
    for position, (path, hf_name, hf_shape) in itertools.product(range(period), layer):
        hf_names = tuple(f"model.layers.{i}.{hf_name}" for i in range(position, config.num_layers, period))
        table.append(Parameter(f"blocks.{position}.{path}", hf_names, hf_shape, stacked=True))
    table.append(Parameter("final_norm.scale", ("model.norm.weight",), (width,), stacked=False))
    if not config.tie_embeddings:
        table.append(Parameter("lm_head.embedding", ("lm_head.weight",), (vocab, width), stacked=False))
    return table
