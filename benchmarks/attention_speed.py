"""Attention as two matrix products against PyTorch's fused attention: python benchmarks/attention_speed.py

Forward and backward on the CPU, without the projections; both in turn in the same run, so that the ratio means
something on any machine.  A ratio above 1 says that the matrix products are faster.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from course.models.attention import Attention

TOKENS = (49, 64, 196, 256)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def bare(channels, heads):
    """Our attention without its projections."""
    attention = Attention(channels, heads)
    for name in ("to_q", "to_k", "to_v", "to_out"):
        setattr(attention, name, nn.Identity())
    return attention


def fused(attention, x, context):
    """A processor that leaves the work to PyTorch."""
    q, k, v = (y.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for y in (x, context, context))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def seconds(attention, processor, x):
    attention.processor = processor
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = attention(x)
    out.backward(torch.ones_like(out))
    return time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="pictures at once (default 64)")
    parser.add_argument("--heads", type=int, default=2, help="of 64 channels each (default 2)")
    parser.add_argument("--repeats", type=int, default=15, help="the median counts (default 15)")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    if options.smoke:
        options.batch, options.repeats = 2, 2
    torch.manual_seed(0)
    attention = bare(64 * options.heads, options.heads)
    ours = attention.processor
    threads = torch.get_num_threads()
    print(f"milliseconds; {threads} threads, batch {options.batch}, {options.heads} heads of 64 channels")
    print(f"{'':10}{'tokens':>8}{'products':>10}{'fused':>10}{'ratio':>8}")
    for label, precision in PRECISIONS.items():
        for tokens in TOKENS:
            x = torch.randn(options.batch, tokens, 64 * options.heads, dtype=precision, requires_grad=True)
            taken = {processor: [] for processor in (ours, fused)}
            for repeat in range(options.repeats + 2):
                for processor, times in taken.items():
                    spent = seconds(attention, processor, x)
                    if repeat >= 2:  # the first two warm up
                        times.append(1000 * spent)
            mine, theirs = median(taken[ours]), median(taken[fused])
            print(f"{label:10}{tokens:8}{mine:10.2f}{theirs:10.2f}{theirs / mine:8.2f}", flush=True)


if __name__ == "__main__":
    main()
