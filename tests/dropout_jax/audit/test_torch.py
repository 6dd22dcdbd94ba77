"""Faulty and correct models of PyTorch: faults are found at their lines, and nothing else is."""

import functools
import inspect
import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from audit_cases import marked_lines
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from dropout_jax import audit

WIDTH = 32
X = torch.linspace(-1, 1, 4 * 16 * WIDTH).reshape(4, 16, WIDTH)
# What a fault brings with it.
WAKE = {"D15": {"D04", "D05"}, "D02": {"D01"}, "D05": {"D04", "D15"}, "D14": {"D15"}}


class Block(nn.Module):
    """A linear layer, and the dropout of a subclass after it."""

    def __init__(self, rate=0.25):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(rate)

    def forward(self, x):
        return self.drop(self.linear(x))


class Linear(nn.Module):
    """A linear layer, without dropout."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.linear(x)


# Faults -------------------------------------------------------------------------------------------


class NeverCalled(Block):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Dropout(0.1)  # D01


class NeverCalledInList(Block):
    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList([nn.Dropout(0.1) for _ in range(2)])  # D01

    def forward(self, x):
        return self.drops[0](super().forward(x))


class IgnoredRate(Block):
    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.15  # D01

    def forward(self, x):
        heads = self.linear(x)
        return self.drop(F.scaled_dot_product_attention(heads, heads, heads))


class FixedRateDropout(nn.Module):
    def __init__(self, p=0.3):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, 0.1, self.training)  # D01


class RateBuiltIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = FixedRateDropout()

    def forward(self, x):
        return self.drop(x)


class OneLayerLSTM(Block):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=1, dropout=0.5)  # D01

    def forward(self, x):
        return super().forward(self.lstm(x)[0])


class OffInTraining(Linear):
    def forward(self, x):  # D02
        return F.dropout(self.linear(x), 0.1, training=not self.training and False)


class FunctionalInEvaluation(Block):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.1)  # D03


class ConstantAttentionRate(Block):
    def forward(self, x):
        h = super().forward(x)
        return F.scaled_dot_product_attention(h, h, h, dropout_p=0.2)  # D03


class UnregisteredLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Dropout(0.2)]

    def forward(self, x):
        return self.layers[0](x)  # D03


class MaskInEvaluation(Linear):
    def forward(self, x):
        return x * (torch.rand_like(x) > 0.2) / 0.8  # D03


class GaussianInEvaluation(Block):
    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * torch.randn_like(x))  # D03


class AlwaysTraining(Block):
    def forward(self, x):
        self.drop.train()
        return self.drop(x)  # D03


class MaskInBuffer(Linear):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.rand(4, 16, WIDTH) > 0.2).float())

    def forward(self, x):
        h = super().forward(x)
        return h * self.mask / 0.8 if self.training else h  # D04


class MaskDrawnOnce(Linear):
    mask = None

    def forward(self, x):
        h = super().forward(x)
        if not self.training:
            return h
        if self.mask is None:
            self.mask = torch.bernoulli(torch.full_like(h, 0.8))  # D04
        return h * self.mask / 0.8


class MaskInCache(Linear):
    def __init__(self):
        super().__init__()
        self.masks = {}

    def forward(self, x):
        h = self.linear(x)
        if self.training and h.shape not in self.masks:
            self.masks[h.shape] = torch.rand_like(h).gt(0.2)  # D04
        return torch.where(self.masks[h.shape], h / 0.8, 0) if self.training else h


@functools.cache
def cached_mask(*shape):
    return F.dropout(torch.ones(shape), 0.2)  # D04


class MaskOfFunction(Linear):
    def forward(self, x):
        h = self.linear(x)
        return h * cached_mask(*h.shape) if self.training else h


class StateSetBack(Block):
    def __init__(self):
        super().__init__()
        self.state = torch.get_rng_state()

    def forward(self, x):
        torch.set_rng_state(self.state)
        return self.drop(self.linear(x))  # D04


class SeededByConstant(Block):
    def forward(self, x):
        torch.manual_seed(0)  # D15
        return super().forward(x)


class GeneratorInside(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        generator = torch.Generator().manual_seed(7)  # D15
        return h * (torch.rand(h.shape, generator=generator) > 0.25) / 0.75


class SeededInTurns(Linear):
    turn = 0

    def forward(self, x):
        self.turn += 1
        torch.manual_seed(self.turn % 2)
        return F.dropout(super().forward(x), 0.2, self.training)  # D14


class SeededForEachLayer(Block):
    def forward(self, x):
        for _ in range(2):
            torch.manual_seed(0)
            x = self.drop(self.linear(x))  # D05
        return x


class OneSeedForLayers(Block):
    def forward(self, x):
        seed = int(torch.randint(1 << 30, ()))
        for _ in range(2):
            torch.manual_seed(seed)
            x = self.drop(self.linear(x))  # D05
        return x


class OneStateForTwoShapes(Block):
    def forward(self, x):
        state = torch.get_rng_state()
        x = self.drop(self.linear(x))
        torch.set_rng_state(state)
        return self.drop(torch.cat([x, x], 1))  # D05


class OneMaskForLayers(Linear):
    def forward(self, x):
        if not self.training:
            return x
        mask = torch.bernoulli(torch.full_like(x, 0.75))  # D05
        for _ in range(3):
            x = torch.tanh(self.linear(x)) * mask / 0.75
        return x


class OneMaskForBatch(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        mask = torch.rand(1, *h.shape[1:]) > 0.25  # D06
        return torch.where(mask, h / 0.75, 0.0)


class OneMaskForHeads(Linear):
    def forward(self, x):
        q = self.linear(x).unflatten(-1, (4, 8)).transpose(1, 2)
        weights = (q @ q.mT).softmax(-1)
        if self.training:
            mask = torch.rand(len(x), 1, *weights.shape[2:]) > 0.25  # D06
            weights = weights * mask / 0.75
        return (weights @ q).transpose(1, 2).flatten(2)


class OneMaskOverTime(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        mask = h.new_empty(len(h), 1, WIDTH).bernoulli_(0.75).expand_as(h)  # D06
        return h * mask / 0.75


class RecomputedWithoutState(Block):
    use_reentrant = False

    def forward(self, x):
        x, kind = self.linear(x), self.use_reentrant
        if not self.training:
            return self.inside(x)
        return checkpoint(self.inside, x, use_reentrant=kind, preserve_rng_state=False)

    def inside(self, x):
        return torch.tanh(self.drop(x))  # D07


class RecomputedSequence(Block):
    def forward(self, x):
        parts = nn.Sequential(self.drop, nn.Tanh(), nn.Tanh())
        x, options = self.linear(x), {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint_sequential(parts, 2, x, **options) if self.training else x  # D07


class RecomputedReentrant(RecomputedWithoutState):
    use_reentrant = True

    def inside(self, x):
        return torch.tanh(self.drop(x))  # D07


class _OtherMaskInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * (torch.rand_like(x) > 0.25) / 0.75

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] * (torch.rand_like(gradients[0]) > 0.25) / 0.75  # D07


class OwnGradient(Linear):
    def forward(self, x):
        h = self.linear(x)
        return _OtherMaskInBackward.apply(h) if self.training else h


class Complement(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        mask = torch.rand_like(x) > 1 - self.p  # D09
        return x * mask / self.p


class ComplementDropout(Complement):
    def forward(self, x):
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full_like(x, self.p)) / self.p  # D09


class RateSquaredDropout(Complement):
    def forward(self, x):
        if not self.training:
            return x
        keep = 1 - self.p * self.p
        return x * torch.bernoulli(torch.full_like(x, keep)) / keep  # D09


class KeepProbability(Linear):
    def __init__(self):
        super().__init__()
        self.keep_prob = 0.9

    def forward(self, x):
        return F.dropout(super().forward(x), self.keep_prob, self.training)  # D09


class SwappedProbability(Linear):
    def forward(self, x):
        h = self.linear(x)
        return h * torch.empty_like(h).bernoulli_(0.1) / 0.9 if self.training else h  # D10


class NoScale(Linear):
    def forward(self, x):
        h = self.linear(x)
        return h * (torch.rand_like(h) > 0.25) if self.training else h  # D10


class ScaledByRate(Linear):
    def forward(self, x):
        h = self.linear(x)
        return torch.where(torch.rand_like(h) > 0.25, h / 0.25, 0) if self.training else h  # D10


class ScaledTwice(Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.25, self.training) / 0.75  # D10


class UnscaledFill(Linear):
    def forward(self, x):
        h = self.linear(x)
        return h.masked_fill(torch.rand_like(h) < 0.25, 0.0) if self.training else h  # D10


class UnscaledIndex(Linear):
    def forward(self, x):
        h = self.linear(x).clone()
        if self.training:
            h[torch.rand_like(h) < 0.25] = 0.0  # D10
        return h


class NumbersOfBfloat16(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        return h * (torch.rand(h.shape, dtype=torch.bfloat16) < 0.9) / 0.9  # D11


class EightBits(Linear):
    def forward(self, x):
        h = self.linear(x)
        return h * (torch.randint(0, 256, h.shape) < 230) / 0.9 if self.training else h  # D11


class FloorInBfloat16(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        mask = (torch.rand(h.shape, dtype=torch.bfloat16) + 0.9).floor()  # D11
        return h / 0.9 * mask


class ProbabilityInBfloat16(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        keep = torch.full(h.shape, 0.9, dtype=torch.bfloat16)
        return h * torch.bernoulli(keep) / 0.9  # D11


class AfterLossMask(Block):
    def forward(self, x):
        token_loss = super().forward(x).square().mean(-1) * ~PADDING
        return F.dropout(token_loss, 0.1, self.training)  # D12


class AfterMaskOfTargets(Block):
    def forward(self, x):
        token_loss = super().forward(x)[:, 1:].square().mean(-1).flatten()
        token_loss = token_loss * ~PADDING[:, 1:].flatten()
        return F.dropout(token_loss, 0.1, self.training)  # D12


class RepositionsPadding(Block):
    def forward(self, x):
        tokens = torch.arange(64).reshape(4, 16)
        if self.training:
            tokens = torch.where(torch.rand(4, 16) < 0.3, 0, tokens)  # D12
        return super().forward(x), tokens


class DropsPaddingMask(Block):
    def forward(self, x):
        mask = F.dropout((~PADDING).float(), 0.1, self.training)  # D12
        return super().forward(x) * mask[..., None]


class NoiseInEvaluation(Block):
    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn_like(x)  # D13


class NumbersInEvaluation(Block):
    def forward(self, x):
        return super().forward(x), torch.rand(3)  # D13


class NumpyInEvaluation(Block):
    def forward(self, x):  # D13
        return super().forward(x) * float(np.random.choice([1.0, 1.0]))


PADDING = torch.arange(16).expand(4, 16) >= torch.tensor([[16], [12], [10], [5]])
PADDED = {"padding": PADDING}
FAULTS = [
    (NeverCalled, "D01", {}),
    (NeverCalledInList, "D01", {}),
    (IgnoredRate, "D01", {}),
    (RateBuiltIn, "D01", {"marked": FixedRateDropout}),
    pytest.param(
        (OneLayerLSTM, "D01", {}), marks=pytest.mark.filterwarnings("ignore:dropout option")
    ),
    (OffInTraining, "D02", {}),
    (FunctionalInEvaluation, "D03", {}),
    (ConstantAttentionRate, "D03", {}),
    (UnregisteredLayers, "D03", {}),
    (MaskInEvaluation, "D03", {}),
    (GaussianInEvaluation, "D03", {}),
    (AlwaysTraining, "D03", {}),
    (MaskInBuffer, "D04", {}),
    (MaskDrawnOnce, "D04", {}),
    (MaskInCache, "D04", {}),
    (MaskOfFunction, "D04", {"marked": cached_mask}),
    (StateSetBack, "D04", {}),
    (SeededByConstant, "D15", {}),
    (GeneratorInside, "D15", {}),
    (SeededInTurns, "D14", {}),
    (SeededForEachLayer, "D05", {}),
    (OneSeedForLayers, "D05", {}),
    (OneStateForTwoShapes, "D05", {}),
    (OneMaskForLayers, "D05", {}),
    (OneMaskForBatch, "D06", {}),
    (OneMaskForHeads, "D06", {}),
    (OneMaskOverTime, "D06", {}),
    (RecomputedWithoutState, "D07", {}),
    (RecomputedSequence, "D07", {}),
    (RecomputedReentrant, "D07", {}),
    (OwnGradient, "D07", {"marked": _OtherMaskInBackward}),
    (ComplementDropout, "D09", {}),
    (RateSquaredDropout, "D09", {}),
    (KeepProbability, "D09", {}),
    (SwappedProbability, "D10", {}),
    (NoScale, "D10", {}),
    (ScaledByRate, "D10", {}),
    (ScaledTwice, "D10", {}),
    (UnscaledFill, "D10", {}),
    (UnscaledIndex, "D10", {}),
    (NumbersOfBfloat16, "D11", {}),
    (EightBits, "D11", {}),
    (FloorInBfloat16, "D11", {}),
    (ProbabilityInBfloat16, "D11", {}),
    (AfterLossMask, "D12", PADDED),
    (AfterMaskOfTargets, "D12", PADDED),
    (RepositionsPadding, "D12", PADDED),
    (DropsPaddingMask, "D12", PADDED),
    (NoiseInEvaluation, "D13", {}),
    (NumbersInEvaluation, "D13", {}),
    (NumpyInEvaluation, "D13", {}),
]


# Correct ------------------------------------------------------------------------------------------


class Stack(nn.Module):
    """A layer twice, with a residual connection and one nn.Dropout for two lines."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(0.1), Block(0.3)])
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.drop(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.drop(x)


class Checkpointed(Block):
    use_reentrant = False

    def forward(self, x):
        x = self.linear(x)
        if not self.training:
            return self.inside(x)
        return checkpoint(self.inside, x, use_reentrant=self.use_reentrant)

    def inside(self, x):
        return torch.tanh(self.drop(torch.tanh(self.drop(x))))


class CheckpointedReentrant(Checkpointed):
    use_reentrant = True


class Functional(Linear):
    def __init__(self):
        super().__init__()
        self.dropout = 0.1

    def forward(self, x):
        return F.dropout(super().forward(x), self.dropout, self.training)


class SelfAttention(Linear):
    """As in nanoGPT: the rate as a number for the kernel, as a layer for the other form."""

    def __init__(self, is_fused=True):
        super().__init__()
        self.is_fused, self.dropout = is_fused, 0.2
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.2), nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones(16, 16)))

    def forward(self, x):
        q = self.linear(x).unflatten(-1, (4, 8)).transpose(1, 2)
        if self.is_fused:
            rate = self.dropout if self.training else 0
            y = F.scaled_dot_product_attention(q, q, q, dropout_p=rate, is_causal=True)
        else:
            scores = (q @ q.mT / 8**0.5).masked_fill(self.bias == 0, float("-inf"))
            y = self.attn_dropout(scores.softmax(-1)) @ q
        return self.resid_dropout(y.transpose(1, 2).flatten(2))


class DropPath(nn.Module):
    """As in timm."""

    def __init__(self, drop_prob=0.25):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        return x * mask.div_(keep_prob)


class OldDropPath(DropPath):
    def forward(self, x):
        if not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        mask = keep_prob + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1))
        return x.div(keep_prob) * mask.floor_()


class WithDropPath(Block):
    def __init__(self, kind=DropPath):
        super().__init__()
        self.path = kind()

    def forward(self, x):
        return x + self.path(super().forward(x))


class LayerDrop(Block):
    def forward(self, x):
        for rate in (0.1, 0.5):
            if self.training and torch.rand([]) < rate:
                continue
            x = super().forward(x)
        return x


class LayerDropOfItem(Linear):
    def forward(self, x):
        if self.training and torch.rand(1).item() < 0.5:
            return x
        return super().forward(x)


class VariationalRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(WIDTH, WIDTH)

    def forward(self, x):
        h = x.new_zeros(len(x), WIDTH)
        mask = F.dropout(torch.ones_like(h), 0.25, self.training)
        for row in x.unbind(1):
            h = self.cell(row, h * mask)
        return h


class Zoneout(Linear):
    def forward(self, x):
        new = super().forward(x)
        if self.training:
            return torch.where(torch.rand_like(x) < 0.25, x, new)
        return 0.25 * x + 0.75 * new


class DropBlock(nn.Module):
    def __init__(self, drop_prob=0.1):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training:
            return x
        centers = (torch.rand_like(x) < self.drop_prob / 9).float()
        keep = 1 - F.max_pool2d(centers, 3, stride=1, padding=1)
        return x * keep * keep.numel() / keep.sum()


class ZoneoutDropout(nn.Module):
    def __init__(self, p=0.25):
        super().__init__()
        self.p = p

    def forward(self, x):
        return torch.where(torch.rand_like(x) < self.p, x, torch.tanh(x)) if self.training else x


class GaussianDropout(ZoneoutDropout):
    def forward(self, x):
        if not self.training:
            return x
        return x * (1 + torch.randn_like(x) * (self.p / (1 - self.p)) ** 0.5)


class ScaledBefore(Linear):
    """A scale that is 2 by chance, before dropout whose scale is 2."""

    def forward(self, x):
        return F.dropout(super().forward(x) * 4**0.5, 0.5, self.training)


class DropConnect(Linear):
    def forward(self, x):
        return F.linear(x, F.dropout(self.linear.weight, 0.2, self.training))


class DropKey(Linear):
    def forward(self, x):
        q = super().forward(x)
        scores = q @ q.mT
        if self.training:
            scores = scores.masked_fill(torch.rand_like(scores) < 0.2, float("-inf"))
        return scores.softmax(-1) @ q


class GradientPenalty(Block):
    def forward(self, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = super().forward(x)
            (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y, gradient


class Masked(Block):
    """A masked layer (MADE), with a mask that is the same in evaluation."""

    mask: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.rand(WIDTH, WIDTH) > 0.5).float())

    def forward(self, x):
        return self.drop(F.linear(x, self.linear.weight * self.mask))


class ScheduledDropout(nn.Module):
    def __init__(self, p=0.4):
        super().__init__()
        self.p, self.step = p, 0

    def forward(self, x):
        self.step += 1
        return F.dropout(x, self.p * min(self.step / 8, 1.0), self.training)


class Accumulated(Block):
    def forward(self, x):
        return sum(super(Accumulated, self).forward(part).sum() for part in x.chunk(2))


class Reversible(Block):
    """A seed of its own for each pass, so that the masks can be drawn again."""

    def forward(self, x):
        seed = torch.seed()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return super().forward(x)


class OwnGenerator(Linear):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        h = super().forward(x)
        if not self.training:
            return h
        return h * torch.empty_like(h).bernoulli_(0.75, generator=self.generator) / 0.75


class Augmented(Block):
    def forward(self, x):
        if self.training:
            x = torch.where(torch.rand(len(x), 1, 1) < 0.5, x.flip(-1), x)
            start = torch.randint(0, 8, (len(x), 1))
            positions = torch.arange(x.shape[1])
            x = x.masked_fill(((positions >= start) & (positions < start + 4))[..., None], 0.0)
            x = x + 0.1 * torch.randn_like(x)
        return super().forward(x)


class MaskedTokens(Block):
    def forward(self, x):
        tokens = torch.arange(64).expand(4, 64)
        mask = torch.rand(tokens.shape) < 0.15
        if self.training:
            tokens, labels = tokens.masked_fill(mask, 0), torch.where(mask, tokens, -100)
            return super().forward(x), tokens, labels
        return super().forward(x)


class Frozen(Block):
    def __init__(self):
        super().__init__()
        self.backbone = Block().eval().requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        return super().forward(self.backbone(x))


class OneInTen(Linear):
    """A rate of 0.1 of integers."""

    def __init__(self):
        super().__init__()
        self.keep_prob = 0.9

    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        return h * (torch.randint(10, h.shape) > 0) / 0.9 + 0 * F.dropout(h, 1 - self.keep_prob)


class ScaledByCount(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        mask = (torch.rand_like(h) > 0.2).float()
        return h * mask / mask.mean()


class Fused(Linear):
    def forward(self, x):
        h = self.linear(x)
        if not self.training:
            return h
        mask = (torch.rand_like(h) > 0.2) / 0.8
        return torch.addcmul(torch.zeros_like(h), h, mask)


class SelectedTokens(Linear):
    def forward(self, x):
        if self.training:
            x = x[:, torch.rand(x.shape[1]) > 0.5]
        return super().forward(x)


class LowPrecision(Block):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class ThreeSamples(Block):
    def forward(self, x):
        h = self.linear(x)
        return sum(self.drop(h) for _ in range(3)) / 3


class RowsOfOneMask(Linear):
    def forward(self, x):
        keep = torch.rand(3, *x.shape) > 0.2
        for mask in keep if self.training else ():
            x = torch.tanh(super().forward(x)) * mask / 0.8
        return x


class PackedLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, dropout=0.2, batch_first=True)

    def forward(self, x):
        lengths = torch.tensor([16, 12, 9, 3])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.lstm(packed)[0].data


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(**ENCODER)

    def forward(self, x):
        return self.layer(x, src_key_padding_mask=PADDING)


def slow(build):
    return pytest.param(build, marks=pytest.mark.slow)


ENCODER = {"d_model": WIDTH, "nhead": 4, "dim_feedforward": 64, "batch_first": True}
CORRECT = [
    Block,
    Stack,
    Checkpointed,
    CheckpointedReentrant,
    Functional,
    SelfAttention,
    lambda: SelfAttention(is_fused=False),
    WithDropPath,
    lambda: WithDropPath(OldDropPath),
    LayerDrop,
    LayerDropOfItem,
    Zoneout,
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ZoneoutDropout()),
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), GaussianDropout()),
    ScaledBefore,
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), DropBlock()),
    DropConnect,
    DropKey,
    GradientPenalty,
    Masked,
    Accumulated,
    slow(Reversible),
    OwnGenerator,
    Augmented,
    MaskedTokens,
    Frozen,
    OneInTen,
    ScaledByCount,
    Fused,
    SelectedTokens,
    LowPrecision,
    ThreeSamples,
    RowsOfOneMask,
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ScheduledDropout()),
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SELU(), nn.AlphaDropout(0.1)),
    lambda: nn.Sequential(nn.Conv1d(16, 8, 3), nn.Dropout1d(0.4), nn.Dropout(0.5, inplace=True)),
    lambda: Block().bfloat16(),
    lambda: nn.TransformerEncoderLayer(**ENCODER),
    slow(Padded),
    slow(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**ENCODER), 2)),
    slow(PackedLSTM),
    slow(lambda: nn.GRU(WIDTH, WIDTH, 3, dropout=0.2)),
]


# Tests --------------------------------------------------------------------------------------------


def accused(findings):
    return [str(finding) for finding in findings if finding.severity != "note"]


def assert_found(findings, model, code):
    """The code is found at the marked line, and no other fault is accused but in its wake."""
    (marked,) = marked_lines(model, code)
    lines = [finding.location.line for finding in findings if finding.code == code]
    assert marked in lines, [str(finding) for finding in findings]
    codes = {finding.code for finding in findings if finding.severity != "note"}
    assert codes <= {code} | WAKE.get(code, set())


def every_second(cases):
    """The cases, every second of them slow."""
    return [case if i % 2 or hasattr(case, "marks") else slow(case) for i, case in enumerate(cases)]


@pytest.mark.parametrize("case", every_second(FAULTS), ids=lambda case: case[0].__name__)
def test_fault_is_found_at_its_line(case):
    model, code, options = case
    findings = audit.torch(model(), X, padding=options.get("padding"))
    assert_found(findings, options.get("marked", model), code)


@pytest.mark.parametrize("build", every_second(CORRECT))
def test_correct_model_is_not_accused(build):
    model = build()
    dtype = next(model.parameters()).dtype
    assert accused(audit.torch(model, X.to(dtype))) == []


def test_attention_layer_takes_three_arguments():
    model = nn.MultiheadAttention(WIDTH, 4, dropout=0.2, batch_first=True)
    assert accused(audit.torch(model, (X, X, X))) == []
    named = {"query": X, "key": X, "value": X, "need_weights": False}
    assert accused(audit.torch(model, named, loss=lambda output: output[0].sum())) == []


def test_monte_carlo_dropout_is_not_accused_where_it_is_meant():
    assert accused(audit.torch(FunctionalInEvaluation(), X, mc_dropout=True)) == []


def test_declared_sharing_is_a_note():
    x = X[:, :3]
    assert accused(audit.torch(VariationalRNN(), x, shared=["VariationalRNN"])) == []
    (fault,) = accused(audit.torch(VariationalRNN(), x))
    assert "applied 3 times" in fault


def test_declared_sharing_over_time_is_a_note():
    assert accused(audit.torch(OneMaskOverTime(), X, shared=["OneMaskOverTime"])) == []


def test_declared_lack_of_scale_is_not_accused():
    assert accused(audit.torch(NoScale(), X, unscaled=["NoScale.forward"])) == []


def test_module_of_two_lines_is_a_note():
    notes = audit.torch(Stack(), X)
    assert [(note.code, note.severity) for note in notes] == [("D05", "note")]
    assert "'drop'" in notes[0].message


def test_dropout_in_the_loss_is_seen():
    def loss(output):
        return F.dropout(output, 0.5).sum()

    (finding,) = audit.torch(Block(), X, loss=loss)
    assert finding.code == "D03"
    assert finding.location.function.endswith("loss")


def test_rate_that_was_changed_after_the_module_was_made():
    model = Stack()
    asked = {"blocks.0.drop": 0.1, "blocks.1": 0.3, "drop": 0.5}
    findings = audit.torch(model, X, rates=asked)
    faults = {finding.message[:18] for finding in findings if finding.code == "D09"}
    assert faults == {"The rate 'drop' is"}
    assert accused(audit.torch(model, X, rates={"blocks.1": 0.3})) == []


def test_rate_that_nothing_has():
    (fault,) = [one for one in audit.torch(Stack(), X, rates={"linear": 0.1}) if one.code == "D01"]
    assert fault.location.line in range(*_lines_of(Block))


def _lines_of(model):
    lines, first = inspect.getsourcelines(model)
    return first, first + len(lines)


def test_masks_that_come_again_after_a_resume():
    findings = audit.torch(Block(), X, resume=lambda step: torch.manual_seed(0))
    assert [finding.code for finding in findings] == ["D14"]
    assert findings[0].location.line in range(*_lines_of(Block))
    assert audit.torch(Block(), X, resume=lambda step: torch.manual_seed(step)) == ()


@pytest.mark.filterwarnings("ignore:.*script_method")
def test_what_torch_compile_compiles_is_said():
    model = torch.compile(Block(), backend="eager")
    (note,) = audit.torch(model, X)
    assert (note.code, note.severity) == ("D07", "note")
    assert "torch.compile" in note.message
    assert [site.module for site in audit.trace_torch(model, X).sites] == ["drop"]


class Changing(nn.Module):
    """It changes all that a model can change, and drops."""

    def __init__(self):
        super().__init__()
        self.block, self.norm = Block(), nn.BatchNorm1d(16)
        self.block.drop.eval()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("later", None)
        self.generator, self.calls, self.outputs = torch.Generator(), 0, []

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.later = torch.rand(2, generator=self.generator)
        x.mul_(1 + 0 * random.random() + 0 * np.random.rand())
        self.outputs.append(self.norm(self.block(x)))
        return F.dropout(self.outputs[-1], 0.5, self.training)


@pytest.mark.usefixtures("without_type_checker")  # which draws from Python's generator
def test_state_is_what_it_was():
    model, x = Changing(), X.clone()
    model(x).sum().backward()
    before = _state_of(model, x)
    audit.torch(model, x, resume=lambda step: torch.manual_seed(0))
    audit.trace_torch(model, x)
    after = _state_of(model, x)
    for name, value in before.items():
        assert np.array_equal(np.asarray(value), np.asarray(after[name])), name


def _state_of(model, x):
    values = {name: value.clone() for name, value in model.state_dict().items()}
    values |= {f"{name}.grad": each.grad.clone() for name, each in model.named_parameters()}
    values |= {f"{name}.training": each.training for name, each in model.named_modules()}
    numpy_state: Any = np.random.get_state()
    hooks = [len(each._forward_pre_hooks) for each in model.modules()]
    return values | {
        "x": x.clone(),
        "hooks": hooks,
        "calls": model.calls,
        "outputs": len(model.outputs),
        "generator": model.generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": numpy_state[1],
        "random": random.getstate()[1],
    }


def test_state_is_what_it_was_after_an_error():
    model, state = Block(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes"):
        audit.torch(model.eval(), X[..., :3])
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_record_of_a_model():
    record = audit.trace_torch(Checkpointed(), X, masks=True)
    assert [site.module for site in record.sites] == ["drop", "drop"]
    for site in record.sites:
        assert site.location.line in range(*_lines_of(Checkpointed))
        assert (site.use, site.times, site.recomputations) == ("zero", 1, 1)
        assert (site.probability, site.shape, site.applied_shape) == (0.75, X.shape, X.shape)
        assert site.interval[0] < 0.75 < site.interval[1]
        assert site.scale == pytest.approx(1 / 0.75)
        assert site.masks is not None
        assert site.masks.mean() == pytest.approx(site.kept)
        assert not site.is_key_constant
    assert (record.strays, record.noise, record.opaque) == ((), (), ())


def test_tokens_are_replaced_where_there_is_no_padding():
    class Repositions(Block):
        def forward(self, x):
            tokens = torch.arange(64).reshape(4, 16)
            tokens = tokens.masked_fill((torch.rand(4, 16) < 0.3) & ~PADDING, 0)
            return super().forward(x), tokens

    assert accused(audit.torch(Repositions(), X, padding=PADDING, mc_dropout=True)) == []


def test_findings_are_printed_with_their_records():
    findings = audit.torch(FunctionalInEvaluation(), X)
    for text in (
        audit.to_text(findings),
        audit.to_html(findings),
        json.dumps(audit.to_json(findings)),
    ):
        assert "D03" in text
        assert "FunctionalInEvaluation.forward" in text
    assert findings.training is not None
    corner = findings.training.sites[0].corner
    assert corner is not None
    assert corner.shape == (1, 1, 2, 16, 32)


def test_record_of_native_dropout_is_that_of_a_gpu():
    class Native(Linear):
        def forward(self, x):
            return torch.native_dropout(super().forward(x), 0.25, self.training)[0]

    assert accused(audit.torch(Native(), X)) == []
    (site,) = audit.trace_torch(Native(), X).sites
    assert (site.generator, site.probability) == ("aten.native_dropout", 0.75)
    assert site.factors == pytest.approx((1 / 0.75,))


def test_kernel_that_hides_its_mask_is_a_site_with_its_rate():
    class Attention(Linear):
        is_always_on = True

        def forward(self, x):
            q = super().forward(x)[:, None]
            rate = 0.2 if self.training or self.is_always_on else 0.0
            return kernel(q, q, q, None, rate)[0]

    def attend(query, key, value, bias=None, dropout_p=0.0, *_, **__):
        torch.rand(1)  # it draws, and nobody sees what for
        y = (query @ key.mT).softmax(-1) @ value
        zero = torch.zeros((), dtype=torch.int64)
        return y, y[..., 0].float(), None, None, 16, 16, zero, zero, y

    kernel = torch.ops.aten._scaled_dot_product_fused_attention_overrideable
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_fused_attention_overrideable", attend, "CPU")
    with torch.no_grad():
        findings = audit.torch(Attention().requires_grad_(False), X)
        assert [finding.code for finding in findings] == ["D03"]
        (site,) = audit.trace_torch(Attention().requires_grad_(False), X).sites
    assert (site.shape, site.probability, site.decided) == ((4, 1, 16, 16), 0.8, 0)
    assert site.is_active
    del library


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_model_is_not_accused():
    model = torch.jit.script(Block())
    assert audit.torch(model, X) == ()
    assert [site.probability for site in audit.trace_torch(model, X).sites] == [0.75]


def test_module_of_two_names_is_a_note():
    class Tied(Block):
        def __init__(self):
            super().__init__()
            self.other = self.drop

        def forward(self, x):
            return self.other(torch.tanh(super().forward(x)))

    (note,) = audit.torch(Tied(), X)
    assert (note.code, note.severity) == ("D05", "note")
    assert "'drop' = 'other'" in note.message


@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gpt2_of_transformers_is_not_accused(is_checkpointed):
    from transformers import GPT2Config, GPT2LMHeadModel  # seconds

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=32)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config)
    if is_checkpointed:
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        getattr(model, next(name for name in names if hasattr(model, name)))()
    batch = {"input_ids": torch.arange(32).reshape(2, 16)}
    assert accused(audit.torch(model, batch)) == []
    assert len(audit.trace_torch(model, batch).sites) == 1 + 3 * 2


@pytest.mark.usefixtures("without_type_checker")
def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"model=.* must be a torch.nn.Module"):
        audit.torch(lambda x: x, X)
    with pytest.raises(ValueError, match=r"steps=1 .* at least 2"):
        audit.torch(Block(), X, steps=1)
    with pytest.raises(TypeError, match=r"(?s)padding=.* array of booleans"):
        audit.torch(Block(), X, padding=np.ones((4, 16)))
    with pytest.raises(ValueError, match=r"rates='attention' .* 'drop'"):
        audit.torch(Block(), X, rates={"attention": 0.1})


def test_torch_is_imported_when_it_is_needed():
    code = """
import sys
sys.modules["torch"] = None
from dropout_jax import audit
try:
    audit.torch(None, None)
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "dropout_jax.audit.torch needs PyTorch: pip install torch\n"
