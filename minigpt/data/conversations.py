"""Read conversations: JSON lines with messages, or with a prompt and its completion."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.data.chat_template import ROLES, Message
from minigpt.data.sources import is_stream, read_file, read_lines
from minigpt.data.text import combine_digests

MESSAGES, PAIR = "messages", ("prompt", "completion")
EXAMPLE = (
    '{"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]}'
)


class Conversation(NamedTuple):
    """The messages of a line, and the line's name in errors."""

    location: str
    messages: list[Message]


def are_conversations(paths: tuple[Path, ...], text_field: str) -> bool:
    """Whether data are conversations, by the first line of each file.

    A file whose name ends in .jsonl or .jsonl.gz has conversations if its first line has messages,
    or a prompt and a completion, and no text in `text_field`.

    Raises:
      ValueError: some of the files have conversations and others do not.
    """
    kinds = {path: _has_conversations(path, text_field) for path in paths}
    if len(set(kinds.values())) == 2:
        text = next(path for path, is_conversation in kinds.items() if not is_conversation)
        other = next(path for path, is_conversation in kinds.items() if is_conversation)
        raise ValueError(
            f"data={str(text)!r} is not allowed beside {str(other)!r}, which has conversations: "
            "all files must have conversations, or none. Train on one kind, and fine-tune the new "
            "run on the other: minigpt finetune NEW_RUN --data FILE."
        )
    return any(kinds.values())


def read_conversations(paths: tuple[Path, ...]) -> tuple[list[Conversation], str]:
    """The conversations of JSON lines, and the SHA-256 of the files' bytes.

    Of several files it is that of their SHA-256 in hexadecimal, with newlines between them.

    Raises:
      ValueError: a file cannot be read or is not UTF-8, or a line is no conversation.
    """
    conversations, digests = [], []
    for path in paths:
        digests.append(hashlib.sha256())
        blocks = _watch(read_file(path), digests[-1])
        for number, line in enumerate(read_lines(path, blocks), 1):
            if line.strip():
                location = f"data={str(path)!r}, line {number}"
                conversations.append(Conversation(location, _parse(line, location)))
    return conversations, combine_digests(digests)


def _watch(blocks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def _has_conversations(path: Path, text_field: str) -> bool:
    if not path.name.endswith((".jsonl", ".jsonl.gz")) or path.is_dir() or is_stream(path):
        return False
    line = next(filter(str.strip, read_lines(path)), "")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False  # which the reader of texts refuses
    if not isinstance(record, dict):
        return False
    is_one = MESSAGES in record or all(name in record for name in PAIR)
    if is_one and text_field in record and text_field != MESSAGES:
        print(
            f"minigpt: of {str(path)!r} the text of the field {text_field!r} is read; for its "
            f"conversations: --text-field {MESSAGES}",
            file=sys.stderr,
        )
        return False
    return is_one


def _parse(line: str, location: str) -> list[Message]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{location}: this is not valid JSON ({error}). Correct the line, or remove it."
        ) from None
    fields = sorted(record) if isinstance(record, dict) else []
    pair = [name for name in PAIR if name in fields]
    if MESSAGES in fields and pair:
        raise ValueError(
            f"{location}: the fields {MESSAGES} and {pair[0]} are not allowed together. Remove one "
            "of them."
        )
    if MESSAGES in fields:
        return _parse_messages(record[MESSAGES], location)
    if len(pair) < 2:
        raise ValueError(
            f"{location}: the fields {fields} are not allowed: a line must have {MESSAGES}, or "
            f"prompt and completion, such as {EXAMPLE}. Correct the line, or remove it."
        )
    roles = zip(ROLES[1:], PAIR, strict=True)
    return [
        Message(role=role, content=_require_content(record[name], f"{location}: {name}"))
        for role, name in roles
    ]


def _parse_messages(messages: Any, location: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f"{location}: messages={messages!r:.80} is not allowed: it must be a list with at "
            f"least one message, such as {EXAMPLE}. Correct the line, or remove it."
        )
    return [
        _parse_message(message, f"{location}, message {number}")
        for number, message in enumerate(messages, 1)
    ]


def _parse_message(message: Any, location: str) -> Message:
    if not isinstance(message, dict):
        raise ValueError(
            f"{location}: {message!r:.80} is not allowed: it must be an object with role and "
            "content. Correct it, or remove the line."
        )
    fields = {name for name, value in message.items() if value is not None}
    if fields != {"role", "content"}:
        raise ValueError(
            f"{location}: the fields {sorted(fields)} are not allowed: they must be role and "
            "content. Add what is missing, and remove the others."
        )
    role = message["role"]
    if role not in ROLES:
        raise ValueError(
            f"{location}: role={role!r:.80} is not allowed: it must be one of {', '.join(ROLES)}. "
            "Rename it, or remove the line."
        )
    content = _require_content(message["content"], f"{location}: content")
    return Message(role=role, content=content)


def _require_content(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{name}={value!r:.80} is not allowed: it must be text that is not empty. Fill it, or "
            "remove the line."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has {value[error.start]!r}, which is not allowed: it is half of a character. "
            "Remove it."
        ) from None
    return value
