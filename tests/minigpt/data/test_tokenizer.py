"""Text to ids and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.tokenizer import build_tokenizer


@given(st.text(min_size=1))
def test_both_kinds_come_back(text):
    for kind in ("char", "byte"):
        tokenizer = build_tokenizer(kind, text)
        ids = tokenizer.encode(text)
        assert ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == text


def test_char_ids_are_places_in_the_sorted_alphabet():
    tokenizer = build_tokenizer("char", "hello")
    assert tokenizer.alphabet == "ehlo"
    np.testing.assert_array_equal(tokenizer.encode("hello"), [1, 0, 2, 2, 3])


@pytest.mark.parametrize("unknown", ["z", "!", "\xd9", "\U0001f600"])
def test_an_unknown_character_is_named_with_its_place(unknown):
    with pytest.raises(ValueError, match=r"at position 2, a character .* --tokenizer byte"):
        build_tokenizer("char", "hello").encode("he" + unknown)


def test_all_unknown_characters_are_listed_up_to_twenty():
    tokenizer = build_tokenizer("char", "hello")
    with pytest.raises(ValueError, match=r"in all these: '!12'\. Remove"):
        tokenizer.encode("2 1!2".replace(" ", "e"))
    with pytest.raises(ValueError, match=r"'ABCDEFGHIJKLMNOPQRST' and 6 more"):
        tokenizer.encode("ZYXWVUTSRQPONMLKJIHGFEDCBA")


def test_more_characters_than_ids_are_refused():
    most = [chr(code) for code in range(0x10000 + 0x800) if not 0xD800 <= code < 0xE000]
    text = "".join(most)
    np.testing.assert_array_equal(build_tokenizer("char", text).encode(text), np.arange(1 << 16))
    with pytest.raises(ValueError, match=r"65,537 distinct characters.* --tokenizer byte"):
        build_tokenizer("char", text + "\U0001f600")


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_ids_that_are_none_are_left_out(kind):
    tokenizer = build_tokenizer(kind, "hello")
    ids = [-1, *tokenizer.encode("hello").tolist(), 2**32]
    assert tokenizer.decode(ids) == "hello"
