"""Chat templates give the texts, ids and answers of transformers' apply_chat_template."""

import json

import numpy as np
import pytest
import transformers
from chat_models import (
    CHATML,
    CONVERSATIONS,
    MARKED,
    QUESTION,
    SPECIAL,
    STRICT,
    TEMPLATES,
    TOKENS,
    UNMARKED,
    byte_level_tokenizer,
    save_chat_model,
)

from minigpt.data import ChatTemplate, Tokenizer, plain_template
from minigpt.data.answers import encode_answers
from minigpt.data.chat_template import PLAIN, PLAIN_WITH_END
from minigpt.data.conversations import Conversation
from minigpt.interop.model_chat_template import read_chat_template


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def answers(template, messages, tokenizer, block_size=10_000):
    encoded = encode_answers([Conversation("here", messages)], tokenizer, template, block_size)
    return encoded.answers


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_and_ids(name, messages, prompt, theirs, tokenizer):
    source, messages = TEMPLATES[name], CONVERSATIONS[messages]
    options = {"add_generation_prompt": prompt, "chat_template": source}
    expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    text = ChatTemplate(source, TOKENS).render(messages, add_generation_prompt=prompt)
    assert text == expected
    ids = theirs.apply_chat_template(messages, return_dict=False, **options)
    assert tokenizer.encode_marked([text])[0].ids.tolist() == ids
    assert any(i >= 259 for i in ids) == (name != "odd")  # special tokens


@pytest.mark.parametrize("messages", ["answer", "turns"])
@pytest.mark.parametrize("source", [MARKED, UNMARKED, PLAIN, PLAIN_WITH_END])
def test_answers_are_those_of_generation_blocks(source, messages, theirs, tokenizer):
    """Where the template has none, they are found by its prompts."""
    messages = CONVERSATIONS[messages]
    with_blocks = MARKED if source == UNMARKED else source
    expected = theirs.apply_chat_template(
        messages, chat_template=with_blocks, return_assistant_tokens_mask=True, return_dict=True
    )
    ours = answers(ChatTemplate(source, TOKENS), messages, tokenizer)
    assert ours.tokens.tolist() == expected["input_ids"]
    assert ours.is_answer.tolist() == list(map(bool, expected["assistant_masks"]))
    assert ours.is_answer.any()


@pytest.mark.parametrize("source", [CHATML, STRICT])
def test_an_answer_ends_with_the_token_that_ends_the_turn(source, tokenizer):
    ours = answers(ChatTemplate(source, TOKENS), CONVERSATIONS["turns"], tokenizer)
    text = tokenizer.decode(ours.tokens[ours.is_answer]).split("<|im_end|>")
    assert [part.strip() for part in text] == ["Hello:\n\n  - you", "49 'é'", ""]


def test_characters_are_those_of_the_answers(tokenizer):
    """Also of an answer that is cut, in the midst of a character."""
    messages = [*QUESTION, {"role": "assistant", "content": "aé😀b"}]
    template = ChatTemplate(CHATML, TOKENS)
    whole = answers(template, messages, tokenizer)
    assert whole.characters == 4
    first = int(np.argmax(whole.is_answer))
    for tokens, characters in ((1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (8, 4), (9, 4)):
        cut = answers(template, messages, tokenizer, first + tokens - 1)
        assert (cut.is_answer.sum(), cut.characters) == (tokens, characters)


def test_the_plain_templates():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi\n\n\nyou \n"},
        {"role": "assistant", "content": "a\n \n\nb"},
        {"role": "user", "content": "c"},
    ]
    plain = plain_template(Tokenizer(None))
    assert plain.render(messages, add_generation_prompt=True) == (
        "System: Be brief.\n\nUser: Hi\nyou\n\nAssistant: a\n \nb\n\nUser: c\n\nAssistant:"
    )
    assert plain.end_of_turn([]) == "\n\n"
    with_end = plain_template(byte_level_tokenizer())
    assert with_end.render(messages, add_generation_prompt=True) == (
        "System: Be brief.\nUser: Hi\n\n\nyou\nAssistant: a\n \n\nb<|endoftext|>\nUser: c\n"
        "Assistant:"
    )
    assert with_end.end_of_turn(SPECIAL) == "<|endoftext|>"
    assert plain.is_plain
    assert with_end.is_plain
    assert not ChatTemplate(CHATML, TOKENS).is_plain


@pytest.mark.parametrize(
    ("source", "messages", "problem"),
    [
        (STRICT, QUESTION * 2, "refuses this conversation: roles must alternate"),
        ("{{ messages[0]['content'].no() }}", QUESTION, "has no attribute 'no'"),
        ("{{ ''.__class__.__mro__ }}", QUESTION, "unsafe"),
        ("{{ messages.append(1) }}", QUESTION, "refuses"),
        ("{{ strftime_now('%Y') }}", QUESTION, "'strftime_now' is undefined"),
        ("{{ messages | random }}", QUESTION, "random"),
        ("{{ lipsum() }}", QUESTION, "'lipsum' is undefined"),
        ("{% for %}", QUESTION, "is not valid: .* at line 1"),
        ("{{ messages | length }}", CONVERSATIONS["turns"], "in another way once others follow"),
    ],
)
def test_refused(source, messages, problem):
    with pytest.raises(ValueError, match=problem):
        ChatTemplate(source, TOKENS).render_answers(messages, SPECIAL)


def test_an_answer_that_shares_a_token_with_its_prompt_is_refused(tokenizer):
    messages = [*QUESTION, {"role": "assistant", "content": "\n\nfour"}]
    with pytest.raises(ValueError, match=r"here: answer 1, '\\n\\nfour<\|im_end\|>\\n', is not"):
        answers(ChatTemplate(CHATML, TOKENS), messages, tokenizer)
    messages[1]["content"] = "four"
    answers(ChatTemplate(CHATML, TOKENS), messages, tokenizer)


@pytest.mark.parametrize("form", ["text", "list", "file", "none"])
def test_the_forms_of_a_folder(form, tmp_path, tokenizer):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    setting = {"text": CHATML, "list": named, "file": "other", "none": None}[form]
    folder = save_chat_model(tmp_path / "chat", setting)
    if form == "file":
        (folder / "chat_template.jinja").write_text(CHATML)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    template = read_chat_template(folder, tokenizer)
    if template is None:
        assert form == "none"
        return
    assert template == ChatTemplate(CHATML, TOKENS)
    assert template.render(QUESTION) == theirs.apply_chat_template(QUESTION, tokenize=False)


def test_special_tokens_of_other_files(tmp_path, tokenizer):
    """special_tokens_map.json, objects in place of texts, and those that GPT-2 has by default."""
    folder = save_chat_model(tmp_path / "chat", "{{ bos_token + eos_token + unk_token }}")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for name in TOKENS:
        del settings[name]
    settings["tokenizer_class"] = "GPT2Tokenizer"
    settings["eos_token"] = {"__type": "AddedToken", "content": "<|im_end|>"}
    path.write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    template = read_chat_template(folder, tokenizer)
    assert template is not None
    assert template.render(QUESTION) == "<|im_start|><|im_end|><|endoftext|>"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"chat_template": "{% if %}"}, "tokenizer_config.json': the chat template is not valid"),
        ({"chat_template": 3}, "chat_template=3 is not allowed"),
        ([], "must be a JSON object"),
    ],
)
def test_damaged_folders(content, problem, tmp_path, tokenizer):
    folder = save_chat_model(tmp_path / "chat")
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        read_chat_template(folder, tokenizer)
