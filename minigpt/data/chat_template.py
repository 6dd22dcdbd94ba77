"""Chat templates: a conversation as one text, rendered by Jinja as transformers renders it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from minigpt.data.subword import SubwordTokenizer
from minigpt.data.tokenizer import AnyTokenizer

END_OF_TEXT = "<|endoftext|>"
ROLES = ("system", "user", "assistant")

# Of a tokenizer with a token that ends a text, which ends each answer here.
PLAIN_WITH_END = """\
{%- for message in messages -%}
{{ message['role'] | capitalize }}:
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}
{%- else -%}
{{ ' ' + message['content'] | trim }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""
# Of any other: an empty line ends an answer, so the empty lines inside it are left out.
PLAIN = """\
{%- for message in messages -%}
{{ message['role'] | capitalize }}:
{%- set lines = (message['content'] | trim).split('\\n') | select -%}
{%- set content = ' ' + lines | join('\\n') + '\\n\\n' -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ content }}{% endgeneration %}
{%- else -%}
{{ content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""


Message = dict[str, str]
"""one turn of a conversation: its role, one of ROLES, and its content"""


class Rendered(NamedTuple):
    """A conversation as one text."""

    text: str
    answers: list[tuple[int, int]]
    """the first character of each answer, and the one after its last: what the model is to write,
    with the token or the text that ends the turn"""


class ChatTemplate(NamedTuple):
    """A Jinja template in the form of Hugging Face, and the special tokens that it may name.

    >>> template = ChatTemplate(PLAIN_WITH_END, {"eos_token": "<|endoftext|>"})
    >>> messages = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
    >>> template.render(messages)
    'User: Hi\\nAssistant: Hello<|endoftext|>\\n'
    >>> template.render(messages[:1], add_generation_prompt=True)
    'User: Hi\\nAssistant:'
    >>> text, answers = template.render_answers(messages, ["<|endoftext|>"])
    >>> [text[start:end] for start, end in answers]
    [' Hello<|endoftext|>']
    """

    source: str
    tokens: Mapping[str, str]
    """the text of bos_token, eos_token, ..., by name"""

    @property
    def is_plain(self) -> bool:
        """Whether it is minigpt's own, and not that of a model."""
        return self.source in (PLAIN, PLAIN_WITH_END)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as one text, as `apply_chat_template(tokenize=False)` gives it.

        `add_generation_prompt` ends it with the text that an answer follows.

        Raises:
          ValueError: the template is not valid, or refuses the conversation.
        """
        return self._render(messages, add_generation_prompt)[0]

    def render_answers(self, messages: Sequence[Message], special: Sequence[str]) -> Rendered:
        """The conversation as one text, and where its answers are.

        They are the {% generation %} blocks of a template that has them. Else an answer begins
        where the prompt for it ends, and ends with the last of the `special` tokens that its
        message adds, or, if there is none, with all that it adds.

        Raises:
          ValueError: also if the text up to an answer is not the prompt for it.
        """
        text, blocks = self._render(messages, False)
        environment: Any = _compile(self.source).environment
        if environment.has_generation:
            return Rendered(text, blocks)
        answers, end_of_text = [], self.tokens.get("eos_token")
        special = [*special, end_of_text] if end_of_text else special
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self.render(messages[:i], add_generation_prompt=True)
                through = self.render(messages[: i + 1])
                if not (text.startswith(through) and through.startswith(prompt)):
                    raise ValueError(_part_message(i))
                answers.append((len(prompt), _find_end(through, len(prompt), special)))
        return Rendered(text, answers)

    def end_of_turn(self, special: Sequence[str]) -> str:
        """The text that ends an answer: a special token, or what the template adds.

        >>> plain = ChatTemplate(PLAIN, {})
        >>> plain.end_of_turn([])
        '\\n\\n'
        """
        probe = "x7Qz"
        messages = [Message(role="user", content=probe), Message(role="assistant", content=probe)]
        text, answers = self.render_answers(messages, special)
        end = text[answers[-1][0] : answers[-1][1]].partition(probe)[2] if answers else ""
        return end or self.tokens.get("eos_token", "")

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        template = _compile(self.source)
        environment: Any = template.environment
        environment.parts, environment.blocks = [], []
        variables: dict[str, Any] = {
            "messages": [
                dict(message) for message in messages
            ],  # which the template may not change
            **{"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt},
        }
        try:
            for part in template.generate(**variables, **self.tokens):
                environment.parts.append(part)
        except Exception as error:  # a template may do anything with its values
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"the chat template refuses this conversation: {reason:.300}. Change the "
                "conversation to one that the template takes."
            ) from None
        return "".join(environment.parts), environment.blocks


def plain_template(tokenizer: AnyTokenizer) -> ChatTemplate:
    """The template of a model that has none: see docs/huggingface.md."""
    if END_OF_TEXT in special_tokens(tokenizer):
        return ChatTemplate(PLAIN_WITH_END, {"eos_token": END_OF_TEXT})
    return ChatTemplate(PLAIN, {})


def special_tokens(tokenizer: AnyTokenizer) -> list[str]:
    """The special tokens of a tokenizer, spelled."""
    if not isinstance(tokenizer, SubwordTokenizer):
        return []
    added = json.loads(tokenizer.tokenizer_json).get("added_tokens") or []
    return [token["content"] for token in added if token["special"]]


def chat_template_content(template: ChatTemplate) -> dict[str, Any]:
    """The template as JSON values."""
    return {"source": template.source, "tokens": dict(template.tokens)}


def chat_template_from_content(content: dict[str, Any]) -> ChatTemplate:
    """The template of `chat_template_content`; other content is a KeyError or a TypeError."""
    return ChatTemplate(content["source"], dict(content["tokens"]))


def require_valid_template(source: str) -> None:
    """Raise ValueError for a template that Jinja cannot parse."""
    _compile(source)


def _find_end(text: str, start: int, special: Sequence[str]) -> int:
    """The end of the last special token after `start`; without one, that of the text."""
    ends = [text.rfind(token, start) + len(token) for token in special if token in text[start:]]
    return max(ends, default=len(text))


def _part_message(i: int) -> str:
    return (
        f"the chat template writes the messages before or in answer {i + 1} in another way once "
        "others follow, so the model would answer another text than it is trained on. Keep the "
        "messages up to the first answer only, or mark answers in the template with "
        "{% generation %} and {% endgeneration %}."
    )


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %}: what the model is to write; records where it is in the text.

    The environment has `parts`, the text that is rendered so far, and `blocks`, the record.
    """

    tags = {"generation"}  # noqa: RUF012 (the library declares it so)

    def parse(self, parser: Any) -> Any:
        """Parse the block to a call of `_record`."""
        line = next(parser.stream).lineno
        environment: Any = self.environment
        environment.has_generation = True
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_record"), [], [], body).set_lineno(line)

    def _record(self, caller: Any) -> str:
        environment: Any = self.environment
        text, start = caller(), sum(map(len, environment.parts))
        environment.blocks.append((start, start + len(text)))
        return text


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.extend(has_generation=False, parts=[], blocks=[])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    # A conversation must have the same text whenever a run resumes: nothing is random, and there is
    # no strftime_now, which transformers has.
    del environment.filters["random"], environment.globals["lipsum"]
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is not valid: {error.message}, at line {error.lineno}. Correct it, "
            "or remove it from the model's folder to use the plain one."
        ) from None


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
