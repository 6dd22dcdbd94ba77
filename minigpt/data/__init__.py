"""From text to batches: decoding, sources of text, tokenizers, token ids, each step's batch."""

from minigpt.data.answers import AnswerBatch, Answers
from minigpt.data.batches import (
    Batch,
    batch_rows,
    describe_rows,
    describe_short_validation,
    example_indices,
    make_batch,
    require_length,
    take_windows,
    window_offsets,
)
from minigpt.data.chat_template import (
    ChatTemplate,
    Message,
    chat_template_content,
    chat_template_from_content,
    plain_template,
    require_valid_template,
    special_tokens,
)
from minigpt.data.conversations import are_conversations
from minigpt.data.dataset import Dataset, load_conversations, load_dataset, load_run_dataset
from minigpt.data.decode import decode_utf8, normalize_text, read_blocks, read_text
from minigpt.data.shakespeare import VALIDATION_PLAYS, is_play, load_plays, play_folders
from minigpt.data.sources import is_stream
from minigpt.data.subword import SubwordTokenizer
from minigpt.data.text import load_text, validation_start
from minigpt.data.tokenizer import (
    AnyTokenizer,
    Tokenizer,
    build_tokenizer,
    tokenizer_content,
    tokenizer_from_content,
)
from minigpt.data.tokenizer_files import make_byte_level_json
