"""What `network.py` takes for granted of `jax.vjp` and JAX does not document: the slot `args_res` of its result.

Should a version of JAX change it, this says so in so many words.
"""

import jax
import jax.numpy as jnp
import pytest

WHY = (
    f"jax {jax.__version__} changed `args_res` of what `jax.vjp` returns, which fusejax/training/network.py writes: "
    "mend that, or lower the bound on jax in pyproject.toml"
)


def layer(params, x, places):
    # As layers are: arguments that are trees, a residual that is no argument, and integers without a gradient.
    return jnp.sin(params["weight"] @ x) * places["factor"] + places["index"]


@pytest.fixture
def arguments():
    weight = jax.random.normal(jax.random.key(0), (3, 3))
    return {"weight": weight}, jnp.arange(3.0), {"factor": jnp.array(2.0), "index": jnp.array(1)}


def checkpointed(policy):
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


@pytest.mark.parametrize("remat", POLICIES)
def test_it_is_a_list_with_an_entry_for_each_argument_in_their_order(remat, arguments):
    _, vjp = jax.vjp(checkpointed(POLICIES[remat]), *arguments)
    assert isinstance(getattr(vjp, "args_res", None), list), WHY
    assert len(vjp.args_res) == len(arguments), WHY
    params, x, places = arguments
    for kept, argument in ((vjp.args_res[0], params["weight"]), (vjp.args_res[1], x)):
        assert [jnp.array_equal(leaf, argument) for leaf in jax.tree.leaves(kept)] == [True], WHY
    # What the backward pass does not need is left out.
    assert all(
        any(jnp.array_equal(leaf, place) for place in places.values()) for leaf in jax.tree.leaves(vjp.args_res[2])
    ), WHY


def test_an_argument_taken_out_is_kept_nowhere_else(arguments):
    """With everything recomputed: what a scan stacks of a vjp are its leaves."""
    _, vjp = jax.vjp(checkpointed(POLICIES["full"]), *arguments)
    vjp.args_res[:] = [None, vjp.args_res[1], None]
    assert [leaf.shape for leaf in jax.tree.leaves(vjp)] == [(3,)], WHY


@pytest.mark.parametrize("remat", POLICIES)
def test_an_argument_put_back_is_the_one_that_the_backward_pass_uses(remat, arguments):
    """As in the network: taken out in a scan, put back in another one."""
    params, x, places = arguments
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def forward(x, params):
        y, vjp = jax.vjp(checkpointed(POLICIES[remat]), params, x, places)
        vjp.args_res[:] = [None, vjp.args_res[1], None]
        return y, vjp

    def backward(dx, scanned):
        params, vjp = scanned
        vjp.args_res[:] = [params, vjp.args_res[1], places]
        d_params, dx, _ = vjp(dx)
        return dx, d_params

    @jax.jit
    def gradients(stacked, other, x):
        y, vjps = jax.lax.scan(forward, x, stacked)
        dx, d_params = jax.lax.scan(backward, jnp.ones_like(y), (other, vjps), reverse=True)
        return d_params["weight"], dx

    def plain(stacked, x):
        return jax.lax.scan(lambda x, params: (layer(params, x, places), None), x, stacked)[0].sum()

    d_stacked, dx = jax.grad(plain, argnums=(0, 1))(stacked, x)
    found, found_dx = gradients(stacked, stacked, x)
    assert jnp.allclose(found, d_stacked["weight"], rtol=1e-5), WHY
    assert jnp.allclose(found_dx, dx, rtol=1e-5), WHY
    # It is this very entry, not a copy made in the forward pass, that the products are taken with.
    others = gradients(stacked, jax.tree.map(jnp.zeros_like, stacked), x)
    assert not jnp.allclose(others[1], dx), WHY
