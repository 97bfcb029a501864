"""The table of parameter names: ours beside Hugging Face's, read in both directions.

Hugging Face stores each layer's tensors apart, and linear maps as [outputs, inputs] with heads flattened; here layers
are stacked, and a kernel is [inputs, outputs] with heads as an axis.
"""

import dataclasses
import itertools
import math

import numpy as np

from fusejax.models.config import DecoderConfig

Axes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of our parameters and the tensors that it is made of."""

    path: str
    """Ours, as `decoder.named_parameters` gives it."""
    hf_names: tuple[str, ...]
    """Hugging Face's: one tensor, or for a stacked parameter one for each block, in order."""
    hf_axes: Axes
    """Axes of such a tensor, each given by the axes of ours that it flattens."""
    stacked: bool
    transposed: bool

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(axes) for axes in self.hf_axes)

    @property
    def axes(self) -> Axes:
        """`hf_axes` in our order."""
        return self.hf_axes[::-1] if self.transposed else self.hf_axes

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.hf_names),) * self.stacked + self.inner_shape

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """`shape` without the stack axis."""
        return tuple(itertools.chain(*self.axes))

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """Of one tensor in our order, without the stack axis and with heads still flattened."""
        return self.hf_shape[::-1] if self.transposed else self.hf_shape

    @property
    def row_axis(self) -> int:
        """The axis of such a matrix that is Hugging Face's first: a range of it is contiguous in a file."""
        return len(self.hf_shape) - 1 if self.transposed else 0

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Our array, without the stack axis, in Hugging Face's layout; a copy only where it is transposed."""
        matrix = np.ascontiguousarray(array).reshape(self.matrix_shape)
        if not self.transposed:
            return matrix
        tensor = np.empty(self.hf_shape, matrix.dtype)
        bits = np.dtype(f"u{matrix.itemsize}")  # NumPy is slow at moving dtypes that are not its own
        source, target = matrix.view(bits), tensor.view(bits)
        rows = strip_rows(matrix[0].nbytes)
        for start in range(0, len(matrix), rows):
            target[:, start : start + rows] = source[start : start + rows].T
        return tensor


def strip_rows(row_bytes: int) -> int:
    """How many rows of a matrix to transpose at a time: as many as a core's cache holds, which is four times faster."""
    return max(32, 1_500_000 // row_bytes)


def parameters(config: DecoderConfig) -> list[Parameter]:
    """The table for one decoder: every parameter, and every tensor of its checkpoints, exactly once."""
    vocab, width, inner = (config.vocab_size,), (config.hidden_size,), (config.intermediate_size,)
    heads, kv_heads = (config.num_heads * config.head_dim,), (config.num_kv_heads * config.head_dim,)
    layer: list[tuple[str, str, Axes]] = [
        ("attention_norm.scale", "input_layernorm.weight", (width,)),
        ("attention.query.kernel", "self_attn.q_proj.weight", (heads, width)),
        ("attention.key.kernel", "self_attn.k_proj.weight", (kv_heads, width)),
        ("attention.value.kernel", "self_attn.v_proj.weight", (kv_heads, width)),
        ("attention.output.kernel", "self_attn.o_proj.weight", (width, heads)),
        ("mlp.gate.kernel", "mlp.gate_proj.weight", (inner, width)),
        ("mlp.up.kernel", "mlp.up_proj.weight", (inner, width)),
        ("mlp.down.kernel", "mlp.down_proj.weight", (width, inner)),
    ]
    if config.qkv_bias:
        layer += [
            ("attention.query.bias", "self_attn.q_proj.bias", (heads,)),
            ("attention.key.bias", "self_attn.k_proj.bias", (kv_heads,)),
            ("attention.value.bias", "self_attn.v_proj.bias", (kv_heads,)),
        ]
    if config.post_norms:
        layer += [
            ("post_attention_norm.scale", "post_attention_layernorm.weight", (width,)),
            ("mlp_norm.scale", "pre_feedforward_layernorm.weight", (width,)),
            ("post_mlp_norm.scale", "post_feedforward_layernorm.weight", (width,)),
        ]
    else:  # what is here called after its place is the norm before the MLP
        layer += [("mlp_norm.scale", "post_attention_layernorm.weight", (width,))]

    table = [Parameter("embedder.embedding", ("model.embed_tokens.weight",), (vocab, width), False, False)]
    period = len(config.pattern)
    for position, (path, hf_name, hf_axes) in itertools.product(range(period), layer):
        hf_names = tuple(f"model.layers.{i}.{hf_name}" for i in range(position, config.num_layers, period))
        table.append(
            Parameter(f"blocks.{position}.{path}", hf_names, hf_axes, stacked=True, transposed=path.endswith("kernel"))
        )
    table.append(Parameter("final_norm.scale", ("model.norm.weight",), (width,), False, False))
    if not config.tie_embeddings:
        table.append(Parameter("lm_head.embedding", ("lm_head.weight",), (vocab, width), False, False))
    return table
