"""From text to batches: sources of text, tokenizers, token ids, and the batch of each step."""

from minigpt.data.batches import Batch, make_batch, require_length, take_windows, window_offsets
from minigpt.data.dataset import Dataset, load_dataset
from minigpt.data.shakespeare import VALIDATION_PLAYS, is_play, load_plays, play_folders
from minigpt.data.text import decode_utf8, load_text, read_blocks, validation_start
from minigpt.data.tokenizer import Tokenizer, build_tokenizer
