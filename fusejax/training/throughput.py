"""How fast a run is, beside what its devices could do: model FLOPs utilization (MFU)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from fusejax.distributed.chips import PEAK_FLOPS, peak_hbm_bytes
from fusejax.models.decoder.config import DecoderConfig


def model_flops(model: DecoderConfig, parameters: int, length: int, *, training: bool) -> float:
    """FLOPs a token that the model itself needs, whatever is recomputed: as in PaLM (arXiv:2204.02311), appendix B.

    `6 N + 12 H Q T` summed over layers for training and a third of it for a forward pass, with heads H of width Q and
    rows of T tokens, or a window if that is shorter. N leaves an input embedding out that is not the output projection
    too: looking a row up takes no products.

    Args:
      parameters: of the model, all of them.
      length: tokens a row.
    """
    if not model.tie_embeddings:
        parameters -= model.vocab_size * model.hidden_size
    seen = sum(min(length, window or length) for window in model.windows)
    return (6 if training else 2) * (parameters + 2 * model.num_heads * model.head_dim * seen)


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What a run's speed is measured by.

    Attributes:
      flops_per_token: of training, as `model_flops`.
      devices: `jax.Device`s of the run, over all hosts, all of one kind.
    """

    flops_per_token: float
    devices: Sequence[Any]

    def measured(self, tokens: float, seconds: float) -> dict[str, float]:
        """Of a step with so many tokens: `tokens_per_second`, over all devices; `mfu`, from 0 to 1, where the devices'
        peak is known; `hbm_peak_bytes`, the most that one of this host's has had in use, where it can tell."""
        rate = tokens / seconds
        found = {"tokens_per_second": rate}
        peak = PEAK_FLOPS.get(self.devices[0].device_kind)
        if peak is not None:
            found["mfu"] = rate * self.flops_per_token / (peak * len(self.devices))
        here = [device for device in self.devices if device.process_index == jax.process_index()]
        hbm = peak_hbm_bytes(here)
        return found if hbm is None else found | {"hbm_peak_bytes": hbm}
