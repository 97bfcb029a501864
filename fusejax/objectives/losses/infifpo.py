"""InfiFPO (2025, arXiv:2505.13878): length-normalised DPO with several models for a reference.

What stands for the reference's value of a response is fused from the values of source models, each with its own
tokenizer, and of the starting model (`fusejax/training/likelihoods.py`). All values are means over tokens, in nats.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, PositiveFloat

from fusejax.common.cli import Location
from fusejax.objectives.losses import FusedReference, Fusion, PairLoss
from fusejax.objectives.preference import PairLosses, Pairs, log_sigmoid_losses, mean_logprobs


class InfiFPO(PairLoss):
    """`-log sigmoid(r_w - r_l)`; `r = beta (p - c)`, where p is the mean log-probability of a response's tokens, and c
    that of a source, raised to the starting model's for the chosen response, lowered to it for the rejected one."""

    needs_reference: ClassVar[bool] = True

    loss: Literal["infifpo"] = "infifpo"
    beta: PositiveFloat = 2.5
    """How strongly the policy is held to the fused reference."""
    sources: tuple[Location, ...] = Field(min_length=1)
    """Of each source the folder that the data pipeline's stage `likelihoods` has written, with a table for each split:
    that of `data.train` has its last part for a name (`train`), and so has that of `data.eval`."""
    fusion: Fusion = "max_margin"
    """Which source: `max_margin` takes of each response the one whose value is farthest from the policy's at that
    moment; `mean` their mean; `confidence` a mean with weights `-1 / l`, where l is a source's own value."""

    @property
    def fused_reference(self) -> FusedReference:
        return FusedReference(self.sources, self.fusion)

    def __call__(self, pairs: Pairs) -> PairLosses:
        chosen = mean_logprobs(pairs.chosen_logprobs, pairs.chosen_lengths)
        rejected = mean_logprobs(pairs.rejected_logprobs, pairs.rejected_lengths)
        assert pairs.chosen_bounds is not None and pairs.rejected_bounds is not None
        chosen_rewards = self.beta * (chosen - farther(chosen, pairs.chosen_bounds))
        rejected_rewards = self.beta * (rejected - farther(rejected, pairs.rejected_bounds))
        return PairLosses(log_sigmoid_losses(chosen_rewards - rejected_rewards), chosen_rewards, rejected_rewards)


def farther(policy: Float[Array, "*P"], bounds: tuple[Float[Array, "*P"], Float[Array, "*P"]]) -> Float[Array, "*P"]:
    """The bound farther from the policy's value. No gradient flows through the choice.

    The least and the largest value of all sources are all that is needed, since one between is never the farthest.
    """
    low, high = bounds
    return jax.lax.stop_gradient(jnp.where(policy - low > high - policy, low, high))
