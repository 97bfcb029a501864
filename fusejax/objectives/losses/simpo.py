"""SimPO: Meng et al. 2024 (arXiv:2405.14734), equation 6."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from fusejax.objectives.losses import PairLoss
from fusejax.objectives.preference import PairLosses, Pairs, log_sigmoid_losses, mean_logprobs


class SimPO(PairLoss):
    """`-log sigmoid(r_w - r_l - gamma)`, where `r` is beta times the mean log-probability of a response's tokens."""

    needs_reference: ClassVar[bool] = False

    loss: Literal["simpo"] = "simpo"
    beta: PositiveFloat = 2.0
    """Factor of the mean log-probability of a response's tokens."""
    gamma: NonNegativeFloat = 0.5
    """How much higher the chosen response's reward should be."""

    def __call__(self, pairs: Pairs) -> PairLosses:
        chosen = self.beta * mean_logprobs(pairs.chosen_logprobs, pairs.chosen_lengths)
        rejected = self.beta * mean_logprobs(pairs.rejected_logprobs, pairs.rejected_lengths)
        return PairLosses(log_sigmoid_losses(chosen - rejected - self.gamma), chosen, rejected)
