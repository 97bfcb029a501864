"""IPO: Azar et al. 2023 (arXiv:2310.12036), equation 17, in the form of TRL's `DPOTrainer`.

The paper has the log ratios of whole responses; TRL, and here, divides each by its response's length.
"""

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from fusejax.objectives.losses import PairLoss
from fusejax.objectives.preference import PairLosses, Pairs


class IPO(PairLoss):
    """`(d_w - d_l - 1 / (2 beta))^2`, where `d` is the mean of `log(p / q)` over a response's tokens."""

    needs_reference: ClassVar[bool] = True

    loss: Literal["ipo"] = "ipo"
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference: tau in the paper."""

    def __call__(self, pairs: Pairs) -> PairLosses:
        chosen, rejected = pairs.log_ratios(mean=True)
        losses = (chosen - rejected - 1 / (2 * self.beta)) ** 2
        return PairLosses(losses, self.beta * chosen, self.beta * rejected)
