"""Turn ids into text while they are drawn: whole characters only, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt.data import AnyTokenizer


class TextStream:
    """The text of one sample; `stop`, a text or several, ends it and is not a part of it.

    >>> from minigpt.data import Tokenizer
    >>> stream = TextStream(Tokenizer(None), stop="END")
    >>> [stream.add(list(piece)) for piece in (b"caf\\xc3", b"\\xa9 E", b"ND more")]
    ['caf', 'é ', '']
    >>> stream.is_stopped
    True
    """

    def __init__(self, tokenizer: AnyTokenizer, stop: str | Sequence[str] | None = None):
        self.is_stopped = False
        self._decode = tokenizer.make_decoder()
        self._stops = [stop] if isinstance(stop, str) else list(stop or ())
        self._pending = ""  # the end of the text so far, which may be the beginning of `stop`

    def add(self, ids: Sequence[int], *, is_last: bool = False) -> str:
        """The text that these ids complete; the last ones complete all of it."""
        if self.is_stopped:
            return ""
        text = self._pending + self._decode(ids, is_last)
        ends = [end for stop in self._stops if (end := text.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            return text[: min(ends)]
        lengths = [_overlap(text, stop) for stop in self._stops]
        length = 0 if is_last else max(lengths, default=0)
        self._pending = text[len(text) - length :]
        return text[: len(text) - length]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that `stop` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
