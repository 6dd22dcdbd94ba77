"""Templates, a byte-level tokenizer with special tokens, and folders of Hugging Face with them."""

import json

from gpt2_folders import make_model, save_model

from minigpt.data import SubwordTokenizer, Tokenizer, make_byte_level_json
from minigpt.interop.plain_tokenizers import tokenizer_json

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# SmolLM2-135M-Instruct's.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
UNMARKED = MARKED.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
# As of Llama 2 and 3: the system message is taken out, roles must alternate, text is trimmed.
STRICT = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}{%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + (system if loop.first else '') + message['content'] | trim + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
ODD = """\
{% set ns = namespace(count=0) %}
{% for message in messages %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
    {% set ns.count = ns.count + 1 %}
{{ ns.count }} {{ message | tojson }} {{ pad_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ dict(role='assistant')['role'] }}:
{% endif %}
"""
TEMPLATES = {"chatml": CHATML, "marked": MARKED, "strict": STRICT, "odd": ODD}
TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
CONVERSATIONS = {
    "question": QUESTION,
    "answer": [*QUESTION, {"role": "assistant", "content": '4, "of course"'}],
    "system": [{"role": "system", "content": "Be brief."}, *QUESTION],
    "turns": [
        {"role": "system", "content": "Répondez — 😀\nin two lines."},
        {"role": "user", "content": "  Hi there  \n"},
        {"role": "assistant", "content": "Hello:\n\n  - you"},
        {"role": "user", "content": "{{ 7 * 7 }} & <b>"},
        {"role": "assistant", "content": "49 'é'"},
    ],
}


def byte_level_tokenizer():
    """GPT-2's pattern, the bytes, a few merges and the special tokens: 262 ids."""
    vocabulary = dict(tokenizer_json(Tokenizer(None))["model"]["vocab"])
    merges = [["h", "e"], ["Ġ", "t"], ["Ċ", "Ċ"]]
    vocabulary |= {a + b: 256 + i for i, (a, b) in enumerate(merges)}
    special = {token: 259 + i for i, token in enumerate(SPECIAL)}
    return SubwordTokenizer.from_text(make_byte_level_json(vocabulary, merges, special))


def save_chat_model(folder, template: str | None = CHATML, block_size=64, **settings):
    """A tiny GPT-2 with this tokenizer and, unless it is None, a chat template."""
    save_model(folder, make_model(vocab_size=262, n_positions=block_size))
    (folder / "tokenizer.json").write_text(byte_level_tokenizer().tokenizer_json)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | TOKENS | settings
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_examples(path, count=40):
    """Questions of one line, as messages and as prompt and completion."""
    lines = []
    for i in range(count):
        question, answer = f"{i} + 1?", f"{i + 1}, " * (1 + i % 3)
        if i % 2:
            lines.append({"prompt": question, "completion": answer})
        else:
            roles = zip(("user", "assistant"), (question, answer), strict=True)
            lines.append({"messages": [{"role": r, "content": text} for r, text in roles]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
