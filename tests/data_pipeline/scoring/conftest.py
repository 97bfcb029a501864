import ctypes
import socket
from collections.abc import Iterator

import pytest

from data_pipeline.scoring.sandbox import judge, tiers
from tests.data_pipeline.scoring.bait import SECRET, Bait, children


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def tier(request: pytest.FixtureRequest) -> tiers.Tier:
    found = [tier for tier in tiers.tiers(allow_unsafe=False) if tier.name == request.param]
    if not found:
        pytest.skip(f"{request.param}: {tiers.missing()}")
    if problem := judge.probe(found[0]):
        pytest.skip(problem)
    return found[0]


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bait]:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        server.setblocking(False)
        patch.setenv("FUSEJAX_SECRET", SECRET)
        yield Bait(tmp_path_factory.mktemp("bait"), server)


@pytest.fixture
def descendants() -> Iterator[set[int]]:
    """Processes of ours, before the test. Whoever loses its parent becomes a child of ours, however it hid."""
    set_subreaper = 36
    libc = ctypes.CDLL(None)
    libc.prctl(set_subreaper, 1, 0, 0, 0)
    yield children()
    libc.prctl(set_subreaper, 0, 0, 0, 0)
