"""Requests in batches, for backends that answer a whole batch at a time."""

from collections.abc import Iterator, Sequence

from data_pipeline.sampling.sampler import Request, Sampling


def batches(requests: Sequence[Request], chunk_size: int, batch_size: int) -> Iterator[list[Request]]:
    """All requests, each once, in lists of at most `batch_size` that are sampled alike.

    Batches are cut from all requests, not from the missing ones, so that resuming changes no batch.

    Args:
      chunk_size: consecutive requests that batches are formed among, by the length of their prompts: rows of like
        length waste least padding.
    """
    for start in range(0, len(requests), chunk_size):
        alike: dict[Sampling, list[Request]] = {}
        for request in sorted(requests[start : start + chunk_size], key=lambda request: len(request.prompt)):
            alike.setdefault(request.sampling, []).append(request)
        for group in alike.values():
            for first in range(0, len(group), batch_size):
                yield group[first : first + batch_size]
