"""minigpt's GPT (without biases) in PyTorch, with an nn.Dropout at every site, for the examples.

The dropout modules are named as minigpt names its sites: "block.0.attn_out" is block/0/attn_out.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        width, rates, self.heads = config.n_embd, config.dropout, config.n_head
        self.attn_norm, self.mlp_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)
        self.attn_weights = nn.Dropout(rates.attn_weights)
        self.attn_context = nn.Dropout(rates.attn_context)
        self.attn_out = nn.Dropout(rates.attn_out)
        self.mlp_hidden = nn.Dropout(rates.mlp_hidden)
        self.mlp_out = nn.Dropout(rates.mlp_out)
        self.drop_path = nn.ModuleDict({x: nn.Dropout(rates.drop_path) for x in ("attn", "mlp")})

    def forward(self, x):
        x = x + self.path("attn", self.attn_out(self.attend(self.attn_norm(x))))
        hidden = self.mlp_hidden(F.gelu(self.wide(self.mlp_norm(x))))
        return x + self.path("mlp", self.mlp_out(self.narrow(hidden)))

    def attend(self, x):
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
        weights = self.attn_weights(scores.masked_fill(hidden, -math.inf).softmax(-1))
        context = (weights @ value).transpose(1, 2).reshape(x.shape)
        return self.mix(self.attn_context(context))

    def path(self, name, branch):
        return branch * self.drop_path[name](torch.ones_like(branch[:, :1, :1]))


class GPT(nn.Module):
    """Tokens to logits, the head tied to the token table."""

    def __init__(self, config, vocab, block=Block):
        super().__init__()
        self.tokens = nn.Embedding(vocab, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.embed = nn.Dropout(config.dropout.embed)
        self.block = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)

    def forward(self, tokens):
        x = self.embed(self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1])))
        for block in self.block:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def port(gpt, vocab):
    """minigpt's GPT in PyTorch, with its weights."""
    model = GPT(gpt.config, vocab)
    copy_weights(model, gpt)
    return model


def copy_weights(model, gpt):
    """Copy the weights of minigpt's GPT (without biases), whose matrices are (inputs, outputs)."""
    tables = [(model.tokens, gpt.tokens.embedding), (model.positions, gpt.positions.embedding)]
    norms, matrices = [(model.norm, gpt.norm)], []
    for mine, theirs in zip(model.block, gpt.blocks, strict=True):
        norms += [(mine.attn_norm, theirs.attn_norm), (mine.mlp_norm, theirs.mlp_norm)]
        matrices += [(mine.qkv, theirs.attn.qkv), (mine.mix, theirs.attn.out)]
        matrices += [(mine.wide, theirs.mlp.wide), (mine.narrow, theirs.mlp.out)]
    pairs = tables
    pairs += [(mine, theirs.scale) for mine, theirs in norms]
    pairs += [(mine, theirs.kernel[...].T) for mine, theirs in matrices]
    with torch.no_grad():
        for module, values in pairs:
            module.weight.copy_(torch.from_numpy(np.array(values[...])))


def make_optimizer(model, config):
    """optax's AdamW of minigpt in PyTorch: decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}]
    groups += [{"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))


def train_step(model, optimizer, batch, learning_rate, clip):
    """One step; returns the loss before it."""
    inputs, targets = (torch.from_numpy(rows.astype(np.int64)) for rows in batch)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    # Not clip_grad_norm_, which adds 1e-6 to the norm.
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    for gradient in gradients:
        gradient.mul_(float(min(1.0, clip / norm)))
    optimizer.step()
    return loss.item()
