import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.families import FAMILIES, make_tokenizer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer("chatml")
