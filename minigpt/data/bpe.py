"""Train a byte-level BPE tokenizer on a text."""

from __future__ import annotations

from collections.abc import Iterable

from minigpt.data.subword import SubwordTokenizer, cut_safely

DEFAULT_VOCAB_SIZE = 4096


def train_bpe(pieces: Iterable[str], vocab_size: int | None = None) -> SubwordTokenizer:
    """Learn the merges of a text that is given piece by piece: GPT-2's kind of tokenizer.

    It has the 256 bytes and the most frequent merges, `vocab_size` entries in all (None: 4096), or
    fewer if the text has no more pairs to merge. The same text gives the same tokenizer: the
    `tokenizers` library counts words, in any order and by any number of threads, and of two pairs
    with the same count it merges the one with the smaller ids.

    >>> tokenizer = train_bpe(["to be or ", "not to be"], 260)
    >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("caf\xe9 to be"))
    (260, 'café to be')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or DEFAULT_VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(cut_safely(pieces), trainer)
    return SubwordTokenizer.from_text(tokenizer.to_str())
