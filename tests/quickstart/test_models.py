"""The tiny checkpoints: four architectures, four tokenizers, masks found, readable by transformers."""

from pathlib import Path

import pytest
import transformers

from fusejax.data.chat import encode_conversation, load_tokenizer
from fusejax.models.huggingface.checkpoint import read_config
from quickstart.models import SOURCES, TARGET, make_checkpoint
from quickstart.tasks import DOMAINS, Task, draw


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [task for domain in DOMAINS for task in draw(domain, "train", 60, "0")]


@pytest.fixture(scope="module")
def checkpoints(tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    texts = [text for task in tasks for text in (task.prompt, task.reference)]
    folder = tmp_path_factory.mktemp("models")
    for name, family in (SOURCES | {"target": TARGET}).items():
        make_checkpoint(family, texts, folder / name, seed=0)
    return {path.name: path for path in folder.iterdir()}


def test_the_sources_are_the_four_architectures_with_tokenizers_of_their_own(checkpoints: dict[str, Path]) -> None:
    kinds = {transformers.AutoConfig.from_pretrained(checkpoints[name]).model_type for name in SOURCES}
    assert kinds == {"llama", "qwen2", "gemma2", "mistral"}
    vocabularies = [load_tokenizer(str(checkpoints[name])).get_vocab() for name in SOURCES]
    assert all(a != b for i, a in enumerate(vocabularies) for b in vocabularies[:i])


@pytest.mark.parametrize("name", [*SOURCES, "target"])
def test_every_reply_is_masked_exactly_and_prompts_end_where_replies_begin(
    name: str, checkpoints: dict[str, Path], tasks: list[Task]
) -> None:
    tokenizer = load_tokenizer(str(checkpoints[name]))
    for task in tasks:
        user = {"role": "user", "content": task.prompt}
        tokens, mask, _ = encode_conversation(tokenizer, [user, {"role": "assistant", "content": task.reference}])
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        assert tokens[: len(prompt)].tolist() == prompt
        targets = tokens[mask]
        assert targets[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(targets, skip_special_tokens=True).strip() == task.reference


@pytest.mark.parametrize("name", [*SOURCES, "target"])
def test_digits_and_chinese_characters_are_merged_with_no_neighbour(name: str, checkpoints: dict[str, Path]) -> None:
    """A rare character may take several tokens of a small vocabulary, but no token reaches into the next character."""
    text = "40法国的首都"
    offsets = load_tokenizer(str(checkpoints[name]))(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [tuple(span) for span in offsets["offset_mapping"]]
    assert all(end - start == 1 for start, end in spans)
    assert {start for start, _ in spans} == set(range(len(text)))


@pytest.mark.parametrize("name", [*SOURCES, "target"])
def test_transformers_loads_them_and_they_know_how_to_stop(name: str, checkpoints: dict[str, Path]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints[name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints[name])
    assert model.config.vocab_size == len(tokenizer) == read_config(checkpoints[name]).vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_another_seed_gives_other_weights_and_the_same_tokenizer(tmp_path: Path, tasks: list[Task]) -> None:
    texts = [task.prompt for task in tasks]
    for seed in (0, 1):
        make_checkpoint(TARGET, texts, tmp_path / str(seed), seed=seed)
    weights = [next((tmp_path / str(seed)).glob("*.safetensors")).read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]
    assert (tmp_path / "0/tokenizer.json").read_text() == (tmp_path / "1/tokenizer.json").read_text()
