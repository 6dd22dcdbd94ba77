"""Compare parity.torch's CUDA masks with those of a real GPU, in one command.

    python examples/check_torch_cuda.py [--out docs/check_torch_cuda.json]

It needs PyTorch with CUDA. Every row is a shape and a dtype of torch.nn.functional.dropout, or the
weights of memory-efficient attention, and whether the mask is equal bit for bit. The exit code is 1
if any differs.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from dropout_jax.parity import torch as parity

SHAPES = ((1,), (7,), (255,), (4096,), (1000, 1001), (3, 1 << 20), (1 << 24,))
DTYPES = ("float32", "float64", "bfloat16", "float16")
ATTENTION = ((1, 1, 16, 16), (2, 3, 64, 128), (2, 4, 100, 200))


def check_dropout(torch, shape, dtype, seed=1234, p=0.3):
    """Compare the masks of two calls, so that the advance of the offset is checked too."""
    device = torch.cuda.get_device_properties(0)
    sizes = {
        "num_sms": device.multi_processor_count,
        "threads_per_sm": device.max_threads_per_multi_processor,
    }
    torch.cuda.manual_seed(seed)
    x, offset, equal = torch.ones(shape, dtype=getattr(torch, dtype), device="cuda"), 0, []
    for _ in range(2):
        theirs = (torch.nn.functional.dropout(x, p) != 0).cpu().numpy()
        ours = parity.cuda_mask(seed, offset, shape, p, itemsize=x.element_size(), **sizes)
        equal.append(bool((ours == theirs).all()))
        offset = parity.cuda_offset_after(offset, math.prod(shape), **sizes)
    return {"op": "dropout", "shape": shape, "dtype": dtype, "equal": equal}


def check_attention(torch, shape, seed=1234, p=0.3):
    """Compare the mask of attention weights; values that are the identity return the weights."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch, heads, queries, keys = shape
    query = torch.randn(batch, heads, queries, keys, device="cuda")
    key = torch.randn(batch, heads, keys, keys, device="cuda")
    value = torch.eye(keys, device="cuda").expand(batch, heads, keys, keys)
    torch.cuda.manual_seed(seed)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        weights = torch.nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=p)
    ours = parity.cuda_sdpa_mask(seed, 0, shape, p)
    equal = bool((ours == (weights != 0).cpu().numpy()).all())
    return {"op": "memory-efficient attention", "shape": shape, "equal": [equal]}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args(arguments).out
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed: pip install torch, with CUDA.")
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here, so there is nothing to compare with.")
    rows = [check_dropout(torch, shape, dtype) for shape in SHAPES for dtype in DTYPES]
    rows += [check_attention(torch, shape) for shape in ATTENTION]
    result = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "rows": rows}
    for row in rows:
        print(row)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    wrong = sum(not all(row["equal"]) for row in rows)
    sys.exit(f"{wrong} of {len(rows)} differ" if wrong else 0)


if __name__ == "__main__":
    main()
