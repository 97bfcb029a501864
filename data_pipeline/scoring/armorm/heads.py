"""What ArmoRM adds to a Llama: from two hidden states to the score and the objectives, in float32.

In float32 whatever the backbone's type: scores are around 0.1, where adjacent bfloat16 numbers are 0.0005 apart, and
selection compares their differences with margins of 0.01.
"""

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Heads(nn.Module):
    """Parameters have the checkpoint's names. `config` is the model's configuration, as transformers or vLLM read it.

    Values that it lacks are the published model's: 19 objectives; three hidden layers of 1,024 in the gate;
    temperature 10.
    """

    def __init__(self, config: Any):
        super().__init__()
        objectives = getattr(config, "num_objectives", 19)
        self.regression_layer = nn.Linear(config.hidden_size, objectives, bias=False, dtype=torch.float32)
        self.gating = _Gate(config, objectives)
        self.reward_transform_matrix = nn.Parameter(torch.eye(objectives, dtype=torch.float32))

    def forward(self, last: Float[Tensor, "B D"], gate: Float[Tensor, "B D"]) -> Float[Tensor, "B R"]:
        """R = 1 + K: the score, then the objectives, of hidden states at the last token and at the gating pattern."""
        objectives = self.regression_layer(last.float())
        score = (self.gating(gate.float()) * (objectives @ self.reward_transform_matrix)).sum(-1, keepdim=True)
        return torch.cat([score, objectives], dim=-1)


class _Gate(nn.Module):
    def __init__(self, config: Any, objectives: int):
        super().__init__()
        hidden = [getattr(config, "gating_hidden_dim", 1024)] * getattr(config, "gating_n_hidden", 3)
        sizes = [config.hidden_size, *hidden, objectives]
        self.layers = nn.ModuleList(
            nn.Linear(size, following, dtype=torch.float32) for size, following in itertools.pairwise(sizes)
        )
        self.logit_scale = nn.Parameter(torch.ones(1, dtype=torch.float32))
        self._temperature = getattr(config, "gating_temperature", 10)

    def forward(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        *first, last = self.layers
        for layer in first:
            hidden = layer(hidden).relu()
        return (last(hidden) / self._temperature).softmax(-1) * self.logit_scale[0]
