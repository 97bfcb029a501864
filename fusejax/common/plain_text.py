"""What users and models wrote stays text, even where it spells a special token.

A tokenizer makes `<|im_end|>` in a text the token that ends a turn, whoever wrote it. In fusion that is likely: an
answer about chat formats, or one of a model that wrote its own control tokens as text, would teach the target to stop
there. So these names are hidden before the chat template writes its own, and tokenised as the characters that they are:

    messages, spelled = hide(tokenizer, messages)   # names in contents become private characters, as many as they had
    text = ...apply_chat_template(messages)         # the template writes its own special tokens
    tokenize(tokenizer, [text], [spelled])          # those are tokens, the hidden ones are text

Positions of characters are the same in the hidden, the rendered and the original text. A conversation that spells no
special token goes through unchanged, to the ids that `apply_chat_template(messages, tokenize=True)` gives.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from fusejax.common.cli import one_line

Tokenizer = Any
"""A `transformers.PreTrainedTokenizerBase`, which takes a second to import."""

# Unicode's two planes for private use: characters that mean nothing, and that neither templates nor normalisers touch.
_WRITTEN, _HIDDEN, _END = 0xF0000, 0x100000, 0x10FFFE
_PRIVATE = re.compile(f"[{chr(_WRITTEN)}-{chr(_END - 1)}]")
_HIDDEN_RUN = re.compile(f"([{chr(_HIDDEN)}-{chr(_END - 1)}])\\1*")


class SpelledError(Exception):
    """A text that spells a special token and cannot be kept as text; the message says why."""


class Tokens(NamedTuple):
    """A text as tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Where each token begins and ends in the text, in characters. Slow tokenizers know none: empty."""


class _Special(NamedTuple):
    numbers: dict[str, int]
    """Name of a special token -> its number among them."""
    names: list[str]
    any_name: re.Pattern[str]


def hide(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The messages with the names of special tokens hidden in their contents; and whether there were any.

    Special are the tokens that the tokenizer calls so, and the added tokens that its chat template writes around turns
    (DeepSeek's `<｜User｜>` is not called special), but for those that mark reasoning, which is part of answers, and
    white space (Gemma's line breaks are added tokens), which spells nothing.

    Raises:
      SpelledError: a content holds such a name beside characters of Unicode's planes for private use; or there are more
        special tokens than such characters.
    """
    turns = [dict(message) for message in messages]
    special = _special(tokenizer, str(tokenizer.chat_template))
    spelled = [_spelled(tokenizer, special, turn["content"]) for turn in turns]
    found = next((name for name in spelled if name), None)
    if found is None:
        return turns, False
    if any(_PRIVATE.search(turn["content"]) for turn in turns):
        raise SpelledError(f"a text spells {found!r} and holds characters for private use")
    if len(special.names) > _END - _HIDDEN:
        raise SpelledError(f"a text spells {found!r}, one of {len(special.names):,} special tokens, which are too many")
    for turn in turns:
        turn["content"] = special.any_name.sub(
            lambda match: chr(_HIDDEN + special.numbers[match[0]]) * len(match[0]), turn["content"]
        )
    return turns, True


def _spelled(tokenizer: Tokenizer, special: _Special, text: str) -> str | None:
    """A name that the text spells, or would once normalised (`</S>` in lower case, `＜/s＞` in NFKC)."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    found = special.any_name.search(text)
    if not found and normalizer and text:
        found = special.any_name.search(normalizer.normalize_str(text))
    return found[0] if found else None


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], spelled: Sequence[bool]) -> list[Tokens]:
    """Tokens of rendered conversations. Nothing is added: special tokens are those that the template wrote.

    Args:
      spelled: whether a text may have hidden names, as `hide` says.

    Raises:
      SpelledError: a text has hidden names, and the tokenizer is not a fast one (it has no `tokenizer.json`), or its
        rules do not let special tokens go by other names.
    """
    plain = [text for text, hides in zip(texts, spelled, strict=True) if not hides]
    results = iter(_tokenize_plain(tokenizer, plain) if plain else [])
    if not any(spelled):
        return list(results)
    special = _special(tokenizer, str(tokenizer.chat_template))
    renamed = _renamed(tokenizer, str(tokenizer.chat_template))
    if isinstance(renamed, SpelledError):
        raise renamed
    with_hidden = [text for text, hides in zip(texts, spelled, strict=True) if hides]
    encodings = renamed.encode_batch([_mask(text, special) for text in with_hidden], add_special_tokens=False)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special.names if name != tokenizer.unk_token}
    numbers = frozenset(ids.values())
    for text, encoding in zip(with_hidden, encodings, strict=True):
        written = [ids[name] for name in special.any_name.findall(text) if name in ids]
        if written != [token for token in encoding.ids if token in numbers]:
            raise SpelledError("a text spells a special token, and this tokenizer's rules do not keep it as text")
    hidden = (Tokens(encoding.ids, encoding.offsets) for encoding in encodings)
    return [next(hidden) if hides else next(results) for hides in spelled]


def _tokenize_plain(tokenizer: Tokenizer, texts: list[str]) -> list[Tokens]:
    # As apply_chat_template calls it.
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    offsets = batch["offset_mapping"] if tokenizer.is_fast else [[] for _ in texts]
    return [Tokens(*each) for each in zip(batch["input_ids"], offsets, strict=True)]


def reveal(tokenizer: Tokenizer, text: str) -> str:
    """The text with hidden names as they are, to show it; it may be any part of a text."""
    special = _special(tokenizer, str(tokenizer.chat_template))

    def name(match: re.Match[str]) -> str:
        number = ord(match[1]) - _HIDDEN
        if number >= len(special.names):  # a private character of the text's own
            return match[0]
        return special.names[number] * max(1, len(match[0]) // len(special.names[number]))

    return _HIDDEN_RUN.sub(name, text)


def _mask(text: str, special: _Special) -> str:
    """The text for `_renamed`: the template's special tokens under their private names, the hidden ones spelled out."""
    written = special.any_name.sub(lambda match: chr(_WRITTEN + special.numbers[match[0]]) * len(match[0]), text)

    def spell(match: re.Match[str]) -> str:
        name = special.names[ord(match[1]) - _HIDDEN]
        if len(match[0]) % len(name):
            raise SpelledError(f"the chat template rewrites {name!r} within a message")
        return name * (len(match[0]) // len(name))

    return _HIDDEN_RUN.sub(spell, written)


@functools.lru_cache(maxsize=8)
def _special(tokenizer: Tokenizer, template: str) -> _Special:
    """Args: template: of the tokenizer, for the cache."""
    added = tokenizer.added_tokens_decoder.values()
    around = _around_turns(tokenizer)
    names = {str(token) for token in added if token.special}
    names |= {name for name in map(str, added) if name in around and "think" not in name.lower()}
    names |= set(tokenizer.all_special_tokens)
    ordered = sorted(name for name in names if name.strip())
    pattern = re.compile(_longest_of(ordered) if ordered else r"(?!)")
    return _Special({name: i for i, name in enumerate(ordered)}, ordered, pattern)


def _longest_of(names: Sequence[str]) -> str:
    """A regular expression for the names, of which it takes the longest that stands somewhere.

    What names begin with alike is compared once: Gemma has thousands, and a program may have as many `<`.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name[:1], []).append(name)
    ends_here = groups.pop("", None) is not None
    options = []
    for group in groups.values():
        least, most = min(group), max(group)
        shared = next((least[:i] for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), least)
        rests = [name[len(shared) :] for name in group]
        options.append(re.escape(shared) + (_longest_of(rests) if len(rests) > 1 else ""))
    return f"(?:{'|'.join(options)})" + ("?" if ends_here else "")


def _around_turns(tokenizer: Tokenizer) -> str:
    """What the template writes around turns that are over; nothing where it does not take these turns."""
    turns = [{"role": role, "content": "\n"} for role in ("user", "assistant", "user")]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError):
        return ""


@functools.lru_cache(maxsize=2)
def _renamed(tokenizer: Tokenizer, template: str) -> Any:
    """The tokenizer (`tokenizers.Tokenizer`), with every special token under a private name of the same length.

    So a special token's own name is text to it, tokenised as any other text, with all that comes before and after.
    An error is the result, too: it takes seconds to find, and every text that needs this would find it again.
    """
    if not tokenizer.is_fast:
        return SpelledError("a text spells a special token, and without tokenizer.json it cannot be kept as text")
    special = _special(tokenizer, template)
    private = {name: chr(_WRITTEN + i) * len(name) for name, i in special.numbers.items()}
    backend = tokenizer.backend_tokenizer
    data = json.loads(backend.to_str())
    for token in data["added_tokens"]:
        token["content"] = private.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {private.get(word, word): number for word, number in model["vocab"].items()}
    else:  # Unigram
        model["vocab"] = [[private.get(word, word), score] for word, score in model["vocab"]]
    if "merges" in model:  # those that make a special token's name of other text
        model["merges"] = [merge for merge in model["merges"] if private.keys().isdisjoint([*merge, "".join(merge)])]
    if "unk_token" in model:
        model["unk_token"] = private.get(model["unk_token"], model["unk_token"])
    try:
        renamed = type(backend).from_str(json.dumps(data))
    except Exception as error:  # a plain one is all that `tokenizers` raises
        return SpelledError(f"a text spells a special token, and cannot be kept as text: {one_line(error)}")
    moved = [name for name, alias in private.items() if renamed.token_to_id(alias) != backend.token_to_id(name)]
    if moved:
        return SpelledError(f"a text spells a special token, and {moved[0]!r} cannot be kept as text")
    return renamed
