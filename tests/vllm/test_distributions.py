"""The stage `distributions` with a real vLLM: what transformers gives, up to rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import PipelineConfig
from data_pipeline.distributions import stage
from data_pipeline.distributions.backend import Asked
from data_pipeline.distributions.vllm_backend import VllmBackend
from fusejax.common.cli import UserError
from fusejax.data.records import open_shards
from tests.data_pipeline.distributions.sources import config_values, examples, make_source, write_sft

HEADS = {"hidden_size": 64, "head_dim": 32}
"""The smallest that vLLM takes."""
FAMILIES = {
    "llama": ("llama3", {}),
    "gemma2": ("gemma", {"sliding_window": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0}),
}
ENGINE = {"enforce_eager": True}


def records(output: Path, directory: Path, backend: str, **section: Any) -> list[Any]:
    write_sft(output, examples(9))
    values = config_values(output, s=directory)
    values["distributions"] |= {"backend": backend, "top_k": 20, **section}
    stage.run(PipelineConfig.model_validate(values))
    return list(open_shards(output / "distributions/s/train"))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_backends_give_the_same(family: str, tmp_path: Path):
    """Most conversations go through vLLM in several chunks. Ids are the same where the next one is not as likely."""
    tokenizer, overrides = FAMILIES[family]
    directory = make_source(tmp_path / "m", tokenizer, family, **HEADS, **overrides)
    expected = records(tmp_path / "transformers", directory, "transformers")
    engine = ENGINE | {"max_num_batched_tokens": 40, "max_num_seqs": 4}
    found = records(tmp_path / "vllm", directory, "vllm", engine=engine)
    assert len(found) == len(expected) == 9
    for one, other in zip(found, expected, strict=True):
        assert one.id == other.id and one.top_ids.shape == (len(one.tokens) + 1, 20)
        for exact in ("tokens", "ends"):
            np.testing.assert_array_equal(getattr(one, exact), getattr(other, exact))
        # Two units of float16's last place between 8 and 16.
        for close in ("logprobs", "top_logprobs"):
            np.testing.assert_allclose(getattr(one, close), getattr(other, close), rtol=0, atol=2**-6)
        gaps = np.diff(other.top_logprobs.astype(np.float32), axis=1)[:, :-1]
        sure = (gaps[:, :-1] < -0.02) & (gaps[:, 1:] < -0.02)
        assert sure.mean() > 0.3
        np.testing.assert_array_equal(one.top_ids[:, 1:-2][sure], other.top_ids[:, 1:-2][sure])


def test_what_an_engine_gives_is_counted(tmp_path: Path):
    """As where a cached prefix has no log-probabilities."""
    directory = make_source(tmp_path / "m", **HEADS)
    backend = VllmBackend("s", directory, "float32", 256, 3, ENGINE)
    try:
        asked = Asked(np.array([5, 6, 7, 8], np.int32), 2)
        (rows,) = backend.rows([asked])
        assert rows.top_ids.shape == (2, 3) and rows.logprobs.shape == (2,)
        params = backend._params()
        backend._engine.add_request("0", {"prompt_token_ids": [5, 6, 7, 8]}, params)
        given = next(output for output in iter(backend._engine.step, None) if output)[0].prompt_logprobs
        assert backend._read(asked, given).top_ids.tolist() == rows.top_ids.tolist()
        with pytest.raises(UserError, match="gave 3 places and 12 log-probabilities, not 4 and 16"):
            backend._read(Asked(np.array([5, 6, 7, 8, 9], np.int32), 2), given)
        with pytest.raises(UserError, match="of other tokens"):
            backend._read(Asked(np.array([5, 6, 9, 8], np.int32), 2), given)
    finally:
        backend.close()


def test_a_model_that_vllm_cannot_load_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="vLLM cannot load") as raised:
        VllmBackend("s", make_source(tmp_path / "m"), "float32", 256, 3, {"no_such_argument": 1})
    assert "\n" not in str(raised.value)
