"""WRPO, weighted-reward preference optimization: Yang et al. 2024 (arXiv:2412.03187).

The chosen side of DPO becomes a mixture of two responses: the best of strong source models, and the target's own best.
The source's share rises from 0, so that training starts with the target's own distribution. Length normalisation and
label smoothing are those of DPO.
"""

from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, PositiveFloat

from fusejax.data.records import Kind
from fusejax.objectives.losses import PairLoss
from fusejax.objectives.preference import PairLosses, Pairs, log_sigmoid_losses


class WRPO(PairLoss):
    """`-log sigmoid(a r_s + (1 - a) r_t - r_l)` of triples: the responses of source and target that are chosen, and the
    target's that is rejected; `r = beta log(p / q)`. Label smoothing is that of `dpo`."""

    needs_reference: ClassVar[bool] = True
    kind: ClassVar[Kind] = "wrpo"

    loss: Literal["wrpo"] = "wrpo"
    beta: PositiveFloat = 0.01
    """How strongly the policy is held to the reference."""
    alpha: float = Field(0.1, ge=0, le=1)
    """Share of the source's response in what is chosen; the target's own has the rest."""
    dynamic: bool = True
    """The share rises from 0 in the first step, in proportion to the steps done, and would reach `alpha` one step after
    the last. Otherwise it is `alpha` from the start."""
    length_normalized: bool = False
    """Each log ratio is divided by its own response's length, so sums become means."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of triples that are taken to be labelled the wrong way round."""

    @property
    def needs_progress(self) -> bool:
        return self.dynamic

    def source_share(self, pairs: Pairs) -> Float[Array, "*P"]:
        alpha = jnp.full_like(pairs.chosen_logprobs, self.alpha)
        if not self.dynamic:
            return alpha
        assert pairs.progress is not None
        return alpha * pairs.progress

    def __call__(self, pairs: Pairs) -> PairLosses:
        source = pairs.source_log_ratio(mean=self.length_normalized)
        target, rejected = pairs.log_ratios(mean=self.length_normalized)
        alpha = self.source_share(pairs)
        chosen = alpha * source + (1 - alpha) * target
        losses = log_sigmoid_losses(self.beta * (chosen - rejected), self.label_smoothing)
        metrics = {
            "alpha": alpha,
            "source_reward": self.beta * source,
            "source_reward_accuracy": (source > rejected).astype(jnp.float32),
        }
        return PairLosses(losses, self.beta * target, self.beta * rejected, metrics)
