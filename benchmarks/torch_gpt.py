"""nanoGPT's architecture and training loop in PyTorch: the peer to measure against.

    python benchmarks/torch_gpt.py --data FILE [--steps 2000] [--dropout 0.0]

trains the default preset of minigpt on the same split of the same text, and prints the loss over
the whole validation text and the median time of a step with its quartiles.
"""

import argparse
import json
import math
import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minigpt.config import PRESETS
from minigpt.data import build_tokenizer, load_text


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width, heads, rate):
        super().__init__()
        self.heads, self.rate = heads, rate
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def drop(self, x):
        return F.dropout(x, self.rate, self.training)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        x = x + self.drop(self.attn_out(mixed.transpose(1, 2).reshape(x.shape)))
        return x + self.drop(self.mlp_out(F.gelu(self.wide(self.norm2(x)))))


class GPT(nn.Module):
    """Tokens to logits, the head tied to the token table."""

    def __init__(self, vocab, model, rate):
        super().__init__()
        self.rate = rate
        self.tokens = nn.Embedding(vocab, model.n_embd)
        self.positions = nn.Embedding(model.block_size, model.n_embd)
        self.blocks = nn.Sequential(
            *(Block(model.n_embd, model.n_head, rate) for _ in range(model.n_layer))
        )
        self.norm = nn.LayerNorm(model.n_embd, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                smaller = math.sqrt(2 * model.n_layer) if "_out" in name else 1
                nn.init.normal_(weight, std=0.02 / smaller)

    def forward(self, tokens, last_only=False):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        x = self.blocks(F.dropout(x, self.rate, self.training))
        x = x[:, -1:] if last_only else x
        return F.linear(self.norm(x), self.tokens.weight)


def make_optimizer(model, config):
    """Fused AdamW with decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def learning_rate(step, steps, config):
    """Linear warm-up, then a cosine to the least rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / (steps - config.warmup_steps)
    lowest = config.final_learning_rate
    return lowest + 0.5 * (1 + math.cos(math.pi * done)) * (config.learning_rate - lowest)


def compute_loss(model, rows):
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def take_windows(tokens, offsets, block):
    return torch.from_numpy(tokens[offsets[:, None] + np.arange(block + 1)])


def train_step(model, optimizer, rows, rate, clip):
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = compute_loss(model, rows)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def validate(model, tokens, block):
    """The mean loss over consecutive windows of the whole text."""
    model.eval()
    offsets = np.arange(0, len(tokens) - block - 1, block)
    with torch.no_grad():
        parts = [
            (compute_loss(model, take_windows(tokens, rows, block)).item(), len(rows))
            for rows in np.array_split(offsets, len(offsets) // 64)
        ]
    model.train()
    return sum(loss * n for loss, n in parts) / len(offsets)


@torch.no_grad()
def generate(model, tokens, count, block):
    """The tokens, (rows, time), and `count` more: one pass over the window for each, no cache."""
    for _ in range(count):
        logits = model(tokens[:, -block:], last_only=True)[:, -1]
        new = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
        tokens = torch.cat((tokens, new), dim=1)
    return tokens


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()

    config = PRESETS["shakespeare-char-cpu"]
    text = load_text(args.data)
    tokenizer = build_tokenizer("char", text.train + text.validation)
    train, validation = (tokenizer.encode(part).astype(np.int64) for part in text)
    torch.manual_seed(args.seed)
    model = GPT(tokenizer.vocab_size, config.model, args.dropout)
    optimizer = make_optimizer(model, config.optim)
    rng, block, times = np.random.default_rng(args.seed), config.model.block_size, []
    for step in range(args.steps):
        offsets = rng.integers(0, len(train) - block, config.batch_size)
        start_time = time.perf_counter()
        rate = learning_rate(step, args.steps, config.optim)
        train_step(
            model, optimizer, take_windows(train, offsets, block), rate, config.optim.grad_clip
        ).item()
        times.append(1e3 * (time.perf_counter() - start_time))
    quartiles = [round(value, 2) for value in statistics.quantiles(times[10:], n=4)]
    result = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    result |= {"steps": args.steps, "dropout": args.dropout, "step_ms_quartiles": quartiles}
    print(json.dumps(result | {"val_loss": round(validate(model, validation, block), 4)}))


if __name__ == "__main__":
    main()
