"""DPO: Rafailov et al. 2023 (arXiv:2305.18290), equation 7.

Length normalisation is that of FuseChat-3.0, after Tulu 3 (arXiv:2411.15124), section 5.1; label smoothing is
conservative DPO, Mitchell 2023.
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from fusejax.objectives.losses import PairLoss
from fusejax.objectives.preference import PairLosses, Pairs, log_sigmoid_losses


class DPO(PairLoss):
    """`-(1 - e) log sigmoid(r_w - r_l) - e log sigmoid(r_l - r_w)`; `r = beta log(p / q)`, e is `label_smoothing`."""

    needs_reference: ClassVar[bool] = True

    loss: Literal["dpo"] = "dpo"
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference."""
    length_normalized: bool = False
    """Each log ratio is divided by its own response's length, so sums become means."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs that are taken to be labelled the wrong way round."""

    def __call__(self, pairs: Pairs) -> PairLosses:
        """The loss and the rewards `r`.

        Example:
          >>> import jax.numpy as jnp
          >>> zeros, ones = jnp.zeros(1), jnp.ones(1, int)
          >>> float(DPO()(Pairs(zeros, zeros, ones, ones, zeros, zeros)).losses[0])  # log 2 where p equals q
          0.6931471824645996
        """
        chosen, rejected = pairs.log_ratios(mean=self.length_normalized)
        losses = log_sigmoid_losses(self.beta * (chosen - rejected), self.label_smoothing)
        return PairLosses(losses, self.beta * chosen, self.beta * rejected)
