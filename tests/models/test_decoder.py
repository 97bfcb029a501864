"""The decoder against transformers, in values and gradients, and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from fusejax.models.attention.dispatch import Placement, attention, visible
from fusejax.models.decoder.config import DecoderConfig
from fusejax.models.decoder.decoder import Decoder, named_parameters
from fusejax.models.huggingface import checkpoint as huggingface
from fusejax.models.huggingface.names import parameters
from tests.models import tiny_checkpoints as tiny

# Beyond the sliding windows (6) and beyond the original length of the llama3 scaling (16).
LENGTH = 40


def rows_alone(length: int, rows: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(3, 96, (rows, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request, tmp_path_factory):
    """A model of transformers and ours, loaded from its checkpoint."""
    directory = tmp_path_factory.mktemp("checkpoint")
    reference = tiny.checkpoint(directory, request.param)
    return reference, huggingface.load(str(directory))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The family with both kinds of layers, and an incomplete last block."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.checkpoint(directory, "gemma3")
    return huggingface.load(str(directory))


# Compiled as a whole: one operation at a time, each would be compiled on its own.
run = nnx.jit(lambda model, *inputs: model(*inputs))
run_logits = nnx.jit(lambda model, *inputs: model.logits(model(*inputs)))


def loss_of(model: Decoder, tokens, positions, segment_ids) -> jax.Array:
    """Mean negative log-likelihood of each next token."""
    tokens = jnp.asarray(tokens)
    hidden = model(tokens, jnp.asarray(positions), jnp.asarray(segment_ids))
    logprobs = jax.nn.log_softmax(model.logits(hidden))
    return -jnp.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], axis=-1).mean()


def test_logits(pair):
    reference, model = pair
    tokens, positions, segment_ids = rows_alone(LENGTH)
    logits = run_logits(model, tokens, positions, segment_ids)
    assert tiny.error(logits, reference(torch.tensor(tokens)).logits) < 1e-5


def test_gradient_of_every_parameter(pair):
    reference, model = pair
    tokens, positions, segment_ids = rows_alone(LENGTH)
    graphdef, params = nnx.split(model, nnx.Param)
    value, gradients = jax.jit(
        jax.value_and_grad(lambda params: loss_of(nnx.merge(graphdef, params), tokens, positions, segment_ids))
    )(params)

    labels = torch.tensor(tokens).long()
    reference.zero_grad()
    expected = reference(labels, labels=labels).loss
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)

    named = named_parameters(gradients)
    theirs = dict(reference.named_parameters())
    for parameter in parameters(model.config):
        ours = np.asarray(named[parameter.path].get_value())
        for block, name in enumerate(parameter.hf_names):
            gradient = ours[block] if parameter.stacked else ours
            assert tiny.error(gradient, theirs.pop(name).grad) < 1e-4, name
    assert not theirs


def test_packed_rows_equal_sequences_alone(pair):
    _, model = pair
    length, gap = 19, 3
    alone = rows_alone(length, rows=3)
    # One row: each sequence followed by a few tokens of padding.
    gaps = [np.full((3, gap), fill, np.int32) for fill in (7, 0, 0)]
    segment_ids = np.broadcast_to(np.arange(1, 4, dtype=np.int32)[:, None], (3, length))
    padded = [np.concatenate(arrays, axis=1) for arrays in zip((*alone[:2], segment_ids), gaps, strict=True)]
    packed = [array.reshape(1, -1) for array in padded]
    hidden = run(model, *packed).reshape(3, length + gap, -1)[:, :length]
    np.testing.assert_allclose(hidden, run(model, *alone), rtol=1e-4, atol=2e-5)


def test_padding_has_no_influence(gemma):
    tokens, positions, segment_ids = (np.array(array) for array in rows_alone(20))
    segment_ids[:, 15:] = 0
    positions[:, 15:] = 0
    graphdef, params = nnx.split(gemma, nnx.Param)

    @jax.jit
    def step(tokens):
        def loss(params):
            hidden = nnx.merge(graphdef, params)(tokens, jnp.asarray(positions), jnp.asarray(segment_ids))
            return (hidden[:, :15] ** 2).sum(), hidden[:, :15]

        return jax.grad(loss, has_aux=True)(params)

    gradients, hidden = step(tokens)
    other_gradients, other_hidden = step(np.where(segment_ids == 0, 5, tokens))
    np.testing.assert_array_equal(hidden, other_hidden)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True):
        np.testing.assert_array_equal(one, other)


def test_decoding_in_pieces_equals_one_pass(gemma):
    tokens, positions, segment_ids = rows_alone(LENGTH)
    cache = gemma.empty_cache(rows=2, slots=LENGTH + 5)
    decode = nnx.jit(lambda model, *inputs: model.decode(*inputs))
    pieces = []
    for half in np.s_[:, : LENGTH // 2], np.s_[:, LENGTH // 2 :]:
        hidden, cache = decode(gemma, tokens[half], positions[half], segment_ids[half], cache)
        pieces.append(hidden)
    expected = run(gemma, tokens, positions, segment_ids)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=1e-4, atol=2e-5)


def test_bfloat16_compute_stays_close_to_float32(pair):
    _, model = pair
    inputs = rows_alone(LENGTH)
    graphdef, params = without_values(model.config, compute_dtype=jnp.bfloat16)[0], nnx.state(model, nnx.Param)
    half = nnx.merge(graphdef, params)
    logits = run_logits(half, *inputs)
    exact = run_logits(model, *inputs)
    assert jax.eval_shape(lambda: half(*map(jnp.asarray, inputs))).dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert jnp.linalg.norm(logits - exact) / jnp.linalg.norm(exact) < 0.03
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_float32_products_are_float32_on_every_backend(gemma):
    """Accelerators take float32 factors in fewer bits unless each product asks for all of them."""
    graphdef, params = nnx.split(gemma, nnx.Param)
    inputs = rows_alone(8)
    gradient = jax.grad(lambda params: loss_of(nnx.merge(graphdef, params), *inputs))
    text = jax.jit(gradient).lower(params).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 20
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def small(*windows: int | None) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        windows=windows or (6, None, 6, None),
        attention_softcap=2.0,
        post_norms=True,
    )


def without_values(config: DecoderConfig, **options) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and shapes of a decoder."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), **options)), nnx.Param)


def test_compiled_program_does_not_grow_with_depth():
    def program(*windows: int | None) -> int:
        graphdef, params = without_values(small(*windows))
        inputs = jnp.ones((1, 8), jnp.int32)
        lowered = jax.jit(lambda params: nnx.merge(graphdef, params)(inputs, inputs, inputs)).lower(params)
        return len(lowered.as_text().splitlines())

    assert program(*(6, None) * 2) == program(*(6, None) * 6)
    # With two layers of a last block: as many lines for eight layers as for 26.
    assert program(*(6, 6, None) * 2, 6, 6) == program(*(6, 6, None) * 8, 6, 6)


def test_split_leaves_nothing_but_parameters():
    _, params, rest = nnx.split(nnx.eval_shape(lambda: Decoder(small(), rngs=nnx.Rngs(0))), nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    assert set(named_parameters(params)) == {parameter.path for parameter in parameters(small())}


def test_table_of_names_has_every_shape(pair):
    _, model = pair
    shapes = {path: parameter.get_value().shape for path, parameter in named_parameters(model).items()}
    assert shapes == {parameter.path: parameter.shape for parameter in parameters(model.config)}


def test_initial_model_is_sane():
    """Unit activations, so logits of order one and a loss near log(vocabulary)."""
    config = small()
    model = huggingface.init(config, seed=3)
    inputs = rows_alone(32)
    loss = nnx.jit(loss_of)(model, inputs[0] % 64, *inputs[1:])
    assert np.log(64) - 0.2 < float(loss) < np.log(64) + 1.5


def test_seed_decides_the_initial_model():
    one, again, other = (huggingface.init(small(), seed=seed).head() for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_visible_example():
    tokens = Placement(jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[1, 1, 1, 2, 2]]))
    seen = visible(tokens, tokens, window=2)[0]
    assert seen[2].tolist() == [False, True, True, False, False]
    assert seen[4].tolist() == [False, False, False, True, True]


def test_attention_that_sees_nothing_is_finite():
    tokens = Placement(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32))
    others = Placement(tokens.positions, tokens.segment_ids + 1)
    x = jnp.ones((1, 2, 2, 4))
    options = {"scale": 0.5, "window": None, "softcap": None, "precision": jax.lax.Precision.HIGHEST}
    mixed = attention(x, x, x, query_placement=tokens, key_placement=others, **options)
    assert bool(jnp.isfinite(mixed).all())
