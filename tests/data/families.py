"""Small tokenizers of several families, each with the normaliser, offsets and chat template that its family has."""

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Hello, how are you today? I am fine, thank you. The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n\n\n# user assistant system model",
    "你好，世界！今天天气很好。中国的首都是北京。",
    "The answer is 42. $x^2 + y^2 = z^2$, so \\boxed{5}. 1234567890",
]

# The parts between [[ and ]] are what the assistant says: `{% generation %}` marks them for the reference, and the
# template under test is without the marks, as real ones are.
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        [[ {{- message['content'] | trim + '<|eot_id|>' -}} ]]
    {%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        [[ {{- message['content'] + '<|im_end|>' -}} ]] {{- '\\n' }}
    {%- else %}{{- message['content'] + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- '<start_of_turn>model\\n' }} [[ {{- message['content'] | trim + '<end_of_turn>' -}} ]] {{- '\\n' }}
    {%- else %}{{- '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}
    {%- else %} [[ {{- ' ' + message['content'] + eos_token -}} ]] {%- endif %}
{%- endfor %}
"""
# Writes an empty block of reasoning before a last answer without any, and takes the reasoning out of earlier answers.
QWEN3 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{%- set last.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {%- set parts = message['content'].split('</think>') %}
        {%- set answer = parts[-1].lstrip('\\n') if parts|length > 1 else message['content'] %}
        {%- set thoughts = parts[0].split('<think>')[-1].strip('\\n') if parts|length > 1 else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > last.question %}
            [[ {{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' + answer.lstrip('\\n') + '<|im_end|>' -}} ]]
        {%- else %} [[ {{- answer + '<|im_end|>' -}} ]] {%- endif %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
GEMMA3 = """\
{{- bos_token }}
{%- set system = messages[0]['role'] == 'system' %}
{%- for message in (messages[1:] if system else messages) %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- '<start_of_turn>model\\n' }} [[ {{- message['content'] | trim + '<end_of_turn>' -}} ]] {{- '\\n' }}
    {%- else %}
        {{- '<start_of_turn>user\\n' + (messages[0]['content'] + '\\n\\n' if system and loop.first else '') }}
        {{- message['content'] | trim + '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""


def _byte_level(special: list[str], *, trim_offsets: bool, normalizer: normalizers.Normalizer | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return tokenizer


def _byte_fallback(special: list[str], *, metaspace: bool) -> Tokenizer:
    """SentencePiece's BPE: spaces are `▁`, characters without a token are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *special]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special + bytes_, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator([word for text in TEXTS for word in text.split("\n")], trainer)
    # Training makes the byte tokens special, so they would match in text; real tokenizers have them in the model only.
    rebuilt = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(tokenizer, part):
            setattr(rebuilt, part, getattr(tokenizer, part))
    rebuilt.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return rebuilt


def _wrap(tokenizer: Tokenizer, template: str, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    if bos:  # adds a BOS to text that the caller tokenises without care, as real ones do
        add_bos = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        before = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([before, add_bos]) if before else add_bos
    # The end-of-turn token serves as padding too, which must not hide it from the mask.
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos)
    wrapped.chat_template = template
    return wrapped


def _llama3(template: str) -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _wrap(_byte_level(special, trim_offsets=True, normalizer=None), template, "<|begin_of_text|>", "<|eot_id|>")


def _chatml(template: str) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(["<|im_start|>", "<|im_end|>"], trim_offsets=False, normalizer=normalizers.NFC())
    return _wrap(tokenizer, template, None, "<|im_end|>")


def _qwen3(template: str) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(["<|im_start|>", "<|im_end|>"], trim_offsets=False, normalizer=normalizers.NFC())
    # Added tokens, but not special ones: they stay in decoded text.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return _wrap(tokenizer, template, None, "<|im_end|>")


def _gemma(template: str) -> PreTrainedTokenizerFast:
    special = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    return _wrap(_byte_fallback(special, metaspace=False), template, "<bos>", "<eos>")


def _mistral(template: str) -> PreTrainedTokenizerFast:
    return _wrap(_byte_fallback(["<s>", "</s>", "[INST]", "[/INST]"], metaspace=True), template, "<s>", "</s>")


FAMILIES: dict[str, tuple[Callable[[str], PreTrainedTokenizerFast], str]] = {
    "llama3": (_llama3, LLAMA3),
    "chatml": (_chatml, CHATML),
    "gemma": (_gemma, GEMMA),
    "mistral": (_mistral, MISTRAL),
    "qwen3": (_qwen3, QWEN3),
    "gemma3": (_gemma, GEMMA3),
}
_made: dict[str, PreTrainedTokenizerFast] = {}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer with its template as it is in the wild; tests that change it set the template back."""
    if family not in _made:
        make, template = FAMILIES[family]
        _made[family] = make(template.replace("[[ ", "").replace(" ]]", ""))
    return _made[family]


def marked_template(family: str) -> str:
    """The family's template with the assistant's words in `{% generation %}` blocks."""
    template = FAMILIES[family][1]
    return template.replace("[[ ", "{%- generation -%}").replace(" ]]", "{%- endgeneration -%}")
