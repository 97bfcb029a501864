"""A run's speed, and its ratio to the devices' peak: model FLOPs utilization (MFU)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from fusejax.distributed.chips import PEAK_FLOPS, peak_hbm_bytes
from fusejax.models.decoder.config import DecoderConfig


def model_flops(model: DecoderConfig, parameters: int, length: int, *, training: bool) -> float:
    """FLOPs per token that the model itself needs, without recomputation: PaLM (arXiv:2204.02311), appendix B.

    `6 N + 12 H Q T` summed over layers for training and a third of it for a forward pass, with H heads of width Q and
    T tokens per row, or per window if that is shorter. N leaves out an input embedding that is not tied to the output
    projection: a lookup takes no matrix products.

    Args:
      parameters: all parameters of the model.
      length: tokens per row.
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
        """Metrics of a step: `tokens_per_second`, over all devices; `mfu`, from 0 to 1, if the devices' peak is known;
        `hbm_peak_bytes`, the most memory that any device of this host has used so far, if devices report it."""
        rate = tokens / seconds
        found = {"tokens_per_second": rate}
        peak = PEAK_FLOPS.get(self.devices[0].device_kind)
        if peak is not None:
            found["mfu"] = rate * self.flops_per_token / (peak * len(self.devices))
        here = [device for device in self.devices if device.process_index == jax.process_index()]
        hbm = peak_hbm_bytes(here)
        return found if hbm is None else found | {"hbm_peak_bytes": hbm}
