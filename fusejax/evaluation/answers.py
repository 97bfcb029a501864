"""Greedy answers of a model to prompts, as tables in the data pipeline's format.

Each batch is kept the moment it is answered, in the data pipeline's answer store: under the hash of the model's
parameters, the prompt's tokens and what else decides the answer. A killed evaluation goes on where it was, and a model
that has answered a prompt is not asked again.
"""

import datetime
from collections import Counter
from typing import Any

import polars as pl
from etils import epath
from flax import nnx

from data_pipeline import stage_files
from data_pipeline.sampling.answer_store import AnswerStore
from fusejax.common.chat_template import DEFAULT_DATE, Encoded, TemplateError, encode_prompt
from fusejax.common.cli import UserError, note, one_line
from fusejax.common.files import local_copy
from fusejax.data.chat import load_tokenizer, turn_end
from fusejax.distributed.mesh import one_device_mesh
from fusejax.models.decoder.generate import generate
from fusejax.models.huggingface.generation_config import named_ends, stop_ids
from fusejax.training.start import StartingModel, check_tokens, fingerprint

_STORED = pl.Schema({"key": pl.String(), "tokens": pl.List(pl.Int64())})
PROMPT_COLUMNS = ("id", "dataset", "domain", "messages", "answer", "tests")


def read_prompts(path: str) -> pl.DataFrame:
    """The prompts to answer: JSON lines or Parquet with the columns of the data pipeline's `prompts.parquet`.

    Raises:
      UserError: no such file, not readable, a column is missing, an id occurs twice, or there are no rows.
    """
    if not epath.Path(path).is_file():
        raise UserError(f"prompts {path}: no such file")
    try:
        with local_copy(path) as local:
            is_parquet = local.suffix == ".parquet"
            frame = pl.read_parquet(local) if is_parquet else pl.read_ndjson(local, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"prompts {path}: cannot be read: {one_line(error)}") from None
    missing = [column for column in PROMPT_COLUMNS if column not in frame.columns]
    if missing:
        raise UserError(f"prompts {path}: no column {missing[0]!r}; the columns are {', '.join(frame.columns)}")
    if frame.is_empty():
        raise UserError(f"prompts {path}: no prompts")
    repeated = frame["id"].filter(frame["id"].is_duplicated())
    if len(repeated):
        raise UserError(f"prompts {path}: the id {repeated[0]!r} occurs more than once")
    return frame.select(PROMPT_COLUMNS)


def answer(
    model: StartingModel,
    name: str,
    prompts: pl.DataFrame,
    *,
    max_new_tokens: int,
    batch_size: int,
    dtype: str,
    folder: epath.Path,
    date: datetime.date = DEFAULT_DATE,
) -> pl.DataFrame:
    """The greedy answers of a model, one row per prompt: the columns that the stage `score` reads.

    A prompt that the model's chat template refuses has the empty answer, with the finish reason `error`.

    Args:
      model: the model that answers.
      name: goes into the column `source`.
      prompts: from `read_prompts`.
      max_new_tokens: of an answer; one that is longer has the finish reason `length`.
      batch_size: prompts decoded together.
      dtype: of parameters and computation.
      folder: where this model's answers are kept; need not exist.
      date: today's, as far as the chat template is told.

    Raises:
      UserError: the model or its tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(model.directory)
    stops = stop_ids(model.directory, tokenizer, turn_end(tokenizer, named_ends(model.directory, tokenizer)))

    def encode(messages: Any) -> Encoded:
        try:
            return encode_prompt(tokenizer, messages, date=date)
        except TemplateError:
            return Encoded([], frozenset())

    encoded = [encode(messages) for messages in prompts["messages"].to_list()]
    changes = Counter(change for prompt in encoded for change in prompt.changes)
    if changes:
        note(f"{name}: of {len(prompts)} prompts {', '.join(f'{n} {change}' for change, n in sorted(changes.items()))}")
    tokens = [prompt.tokens for prompt in encoded]
    asked = [each for each in tokens if each]
    check_tokens(model.source, model.config.vocab_size, max((max(each) for each in asked), default=0))
    graph, _ = model.graph(param_dtype=dtype, compute_dtype=dtype)
    params = model.load(one_device_mesh(), dtype=dtype)
    kind = [fingerprint(params, model.config.vocab_size), max_new_tokens, sorted(stops)]
    keys = [stage_files.fingerprint(kind, each) for each in asked]
    with AnswerStore(folder, _STORED) as store:
        known = dict(store.table().select("key", "tokens").iter_rows())

        def keep(made: dict[int, list[int]]) -> None:
            found = {keys[place]: tokens for place, tokens in made.items()}
            store.append([{"key": key, "tokens": found[key]} for key in found if key not in store.keys])

        answered = iter(
            generate(
                nnx.merge(graph, params),
                asked,
                max_new_tokens=max_new_tokens,
                stop_ids=stops,
                batch_size=batch_size,
                kept={place: known[key] for place, key in enumerate(keys) if key in known},
                keep=keep,
            )
        )
    answers = [next(answered) if each else [] for each in tokens]

    def reason(prompt: list[int], answer: list[int]) -> str:
        return "error" if not prompt else "stop" if len(answer) < max_new_tokens else "length"

    return pl.DataFrame(
        {
            "prompt_id": prompts["id"],
            "source": name,
            "sample_index": 0,
            "text": tokenizer.batch_decode(answers, skip_special_tokens=True),
            "finish_reason": [reason(*each) for each in zip(tokens, answers, strict=True)],
            "prompt_tokens": [len(each) for each in tokens],
            "completion_tokens": [len(each) for each in answers],
        },
        schema_overrides={"sample_index": pl.Int64},
    )
