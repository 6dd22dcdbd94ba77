"""Subword tokenizers: any tokenizer.json of `tokenizers` whose ids give the text back exactly."""

from __future__ import annotations

import codecs
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsInt

import numpy as np

from minigpt.data.tokenizer_files import read_tokenizer_json

if TYPE_CHECKING:
    import tokenizers

MAX_IDS = 1 << 24  # the table of tokens has an entry for each id
PIECE_CHARACTERS = 1 << 15
BATCH_PIECES = 32  # that are encoded at the same time; an Encoding takes many times its ids' memory

# A text may be cut before a space or a newline that follows a character which is not white space,
# and its parts tokenized one by one: see SubwordTokenizer.cuts_safely.
_CUT = re.compile(r"(?<=\S)[ \n]")
_LAST_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)


class MarkedIds(NamedTuple):
    """The ids of a text with special tokens."""

    ids: np.ndarray
    ends: np.ndarray
    """the number of bytes of the text up to the end of each token"""


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library, as the text of its tokenizer.json.

    Special tokens such as <|endoftext|> are ordinary text for `encode`, and `decode` spells them.

    >>> tokenizer = SubwordTokenizer.from_file("gpt2")
    >>> tokenizer.encode("Hello, world").tolist()
    [15496, 11, 995]
    >>> tokenizer.decode([15496, 11, 995]), tokenizer.vocab_size
    ('Hello, world', 50257)
    """

    tokenizer_json: str

    @classmethod
    def from_file(cls, path: Path | str) -> SubwordTokenizer:
        """Read a tokenizer.json, a folder with one or with vocab.json and merges.txt, or gpt2.

        Raises:
          ValueError: it cannot be read, or is no tokenizer.
        """
        tokenizer = cls(read_tokenizer_json(path))
        try:
            _ = tokenizer.vocab_size, tokenizer._tokens, tokenizer._encoder
        except ValueError as error:
            raise ValueError(f"tokenizer={str(path)!r} is not allowed: {error}") from None
        return tokenizer

    @classmethod
    def from_text(cls, text: str) -> SubwordTokenizer:
        """From the text of a tokenizer.json; two texts of the same JSON give equal tokenizers."""
        return cls(json.dumps(json.loads(text)))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._tokens)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """Of the ids: 16 bits if they suffice, else 32."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @functools.cached_property
    def sha256(self) -> str:
        """Of the text of tokenizer.json."""
        return hashlib.sha256(self.tokenizer_json.encode()).hexdigest()

    def encode(self, text: str, *, offset: int = 0) -> np.ndarray:
        """Convert text to ids, of the property `dtype`.

        A text that the ids do not give back is a ValueError: one with a character that the
        tokenizer lacks, or changes (to lower case, say). `offset` is the position of `text` in a
        longer text, for the error message.
        """
        ids = list(self.encode_pieces([text], offset=offset))
        return np.concatenate(ids) if ids else np.zeros(0, self.dtype)

    def encode_pieces(self, pieces: Iterable[str], *, offset: int = 0) -> Iterator[np.ndarray]:
        """The ids of a text that is given piece by piece; joined, they are those of `encode`.

        All threads of the `tokenizers` library are used. A tokenizer whose text cannot be cut
        safely gets the whole text at once.
        """
        parts = cut_safely(pieces) if self.cuts_safely else filter(None, ["".join(pieces)])
        while batch := list(itertools.islice(parts, BATCH_PIECES)):
            for part in batch:
                part.encode()  # half a character is a ValueError
            encodings = self._encoder.encode_batch_fast(batch, add_special_tokens=False)
            for part, encoding in zip(batch, encodings, strict=True):
                ids = encoding.ids
                self._require_exact(part, self.decode(ids), offset)
                offset += len(part)
                yield np.array(ids, self.dtype)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Convert ids to text; bytes that are not valid UTF-8 become U+FFFD."""
        known = [i for i in map(int, ids) if 0 <= i < len(self._tokens)]
        if self._is_byte_level:
            return b"".join([self._tokens[i] for i in known]).decode(errors="replace")
        return self._encoder.decode(known, skip_special_tokens=False)

    def make_decoder(self) -> Callable[[Sequence[int], bool], str]:
        """A function of the next ids, and whether they are the last, to the text they complete."""
        if not self._is_byte_level:
            return _WindowDecoder(self)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        size = len(self._tokens)

        def decode(ids: Sequence[int], is_last: bool) -> str:
            data = b"".join(self._tokens[i] for i in ids if 0 <= i < size)
            return decoder.decode(data, final=is_last)

        return decode

    def token_ends(self, text: str) -> np.ndarray:
        """The number of bytes of the text up to the end of each of its tokens."""
        if self._is_byte_level:
            return np.cumsum([len(self._tokens[i]) for i in self.encode(text)])
        self.encode(text)
        return _byte_ends(text, self._encoder.encode(text, add_special_tokens=False).offsets)

    def encode_marked(self, texts: Sequence[str]) -> list[MarkedIds]:
        """The ids of texts in which a special token that is spelled is that token.

        A text with a character that the tokenizer lacks is a ValueError.
        """
        encodings = self._marking_encoder.encode_batch(list(texts), add_special_tokens=False)
        marked = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, self.dtype)
            decoded = self.decode(ids)
            if self._is_byte_level:
                self._require_exact(text, decoded, 0)
                ends = np.cumsum([len(self._tokens[i]) for i in encoding.ids])
            else:  # white space beside a special token may change
                self._require_exact("".join(text.split()), "".join(decoded.split()), 0)
                ends = _byte_ends(text, encoding.offsets)
            marked.append(MarkedIds(ids, ends))
        return marked

    @functools.cached_property
    def cuts_safely(self) -> bool:
        r"""Whether a text may be cut at _CUT, and its parts tokenized one by one.

        It holds for GPT-2's pattern, alone or after the splitting of digits. Only two of its forms,
        \s+(?!\S) and \s+, match white space beyond a leading space, and they match nothing else: no
        match continues from a character that is not white space into a space or newline, so there
        is a border of two matches at every cut. The matches before it stay the same, since only
        \s+(?!\S) looks beyond its match, for the end of white space, and the white space before the
        cut ends before it. Those after it do, since no form looks back. (After a newline is no safe
        place: of "a\n\nb" the two newlines are two matches, at the end of a text they are one.)
        """
        content = json.loads(self.tokenizer_json)
        steps = content.get("pre_tokenizer") or {}
        steps = steps.get("pretokenizers", [steps])
        *first, last = steps or [{}]
        is_plain = not content.get("normalizer") and content["model"].get("type", "BPE") == "BPE"
        # Other added tokens are found before the pattern is applied, and may have spaces.
        is_special = all(token["special"] for token in content.get("added_tokens") or [])
        has_pattern = last.get("type") == "ByteLevel" and last.get("use_regex", True)
        is_digits = [step.get("type") for step in first] in ([], ["Digits"])
        has_prefix = any(step.get("add_prefix_space") for step in steps)
        return is_plain and is_special and has_pattern and is_digits and not has_prefix

    @functools.cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """The tokenizer, without special tokens in the text, truncation, padding and chance."""
        encoder = self._build_encoder()
        encoder.encode_special_tokens = True
        return encoder

    @functools.cached_property
    def _marking_encoder(self) -> tokenizers.Tokenizer:
        """The same with special tokens in the text."""
        return self._build_encoder()

    def _build_encoder(self) -> tokenizers.Tokenizer:
        import tokenizers

        try:
            encoder = tokenizers.Tokenizer.from_str(self.tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(
                f"it is no tokenizer of the tokenizers library ({error}). Name a tokenizer.json "
                "that tokenizers.Tokenizer.from_file reads."
            ) from None
        encoder.no_truncation()
        encoder.no_padding()
        if getattr(encoder.model, "dropout", None):
            encoder.model.dropout = None
        return encoder

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        """Whether the text of some ids is the text of each one's bytes, joined."""
        return (json.loads(self.tokenizer_json).get("decoder") or {}).get("type") == "ByteLevel"

    @functools.cached_property
    def _tokens(self) -> list[bytes]:
        """The bytes of each id if the tokenizer is byte-level; an id that is not used has none."""
        vocabulary = self._encoder.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        if not 0 < size <= MAX_IDS:
            raise ValueError(
                f"it has the largest id {size - 1}: it must be from 0 to {MAX_IDS - 1:,}. Name "
                "another tokenizer."
            )
        tokens, byte_of = [b""] * size, _byte_of_character()
        for token, i in vocabulary.items():
            is_spelled = all(character in byte_of for character in token)
            tokens[i] = bytes(byte_of[c] for c in token) if is_spelled else token.encode()
        for i, token in self._encoder.get_added_tokens_decoder().items():
            tokens[i] = token.content.encode()
        return tokens

    def _require_exact(self, text: str, decoded: str, offset: int) -> None:
        if decoded == text:
            return
        pairs = enumerate(zip(text, decoded, strict=False))
        shorter = min(len(text), len(decoded))
        first = next((i for i, (one, other) in pairs if one != other), shorter)
        raise ValueError(
            f"text has {text[first : first + 1]!r} at position {offset + first}, where the ids of "
            f"this tokenizer spell {decoded[first : first + 1]!r}: it must give every text back. "
            "Train with --tokenizer gpt2, bpe or byte, which know every character."
        )


def _byte_ends(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The number of bytes of a text up to the end of each token, from the tokens' characters."""
    characters = np.cumsum([0, *(len(character.encode()) for character in text)])
    return np.maximum.accumulate(characters[[end for _, end in offsets]])


class _WindowDecoder:
    """Decodes ids if a token's text depends on those before it: the text of a window grows."""

    def __init__(self, tokenizer: SubwordTokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the ids of the last text that was complete, and new ones
        self._complete = 0

    def __call__(self, ids: Sequence[int], is_last: bool) -> str:
        self._window += ids
        before = self._tokenizer.decode(self._window[: self._complete])
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd") and not is_last:  # perhaps half a character
            return ""
        self._window = self._window[self._complete :] if len(text) > len(before) else self._window
        self._complete = len(self._window)
        return text[len(before) :]


def cut_safely(pieces: Iterable[str]) -> Iterator[str]:
    """Cut a text, given piece by piece, into parts of about PIECE_CHARACTERS at _CUT.

    >>> list(cut_safely(["to be, ", "or not"])), list(cut_safely(["a" * 40_000 + " b"]))[1]
    (['to be,', ' or', ' not'], ' b')
    """
    rest = ""
    for piece in pieces:
        rest += piece
        if last := _LAST_CUT.match(rest):
            yield from _parts(rest[: last.end()])
            rest = rest[last.end() :]
    yield from _parts(rest)


def _parts(text: str) -> Iterator[str]:
    start = 0
    while cut := _CUT.search(text, start + PIECE_CHARACTERS):
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary, as in GPT-2's encoder.py.

    Visible characters of Latin-1 stand for themselves; the others are U+0100 and on, in order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(others)}
