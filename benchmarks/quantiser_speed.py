"""The nearest codebook entry by one matrix product against broadcasting: python benchmarks/quantiser_speed.py

Time and the most memory that either holds beyond its input; both in turn in the same run, so that the ratios mean
something on any machine.  A ratio above 1 says that the matrix product is faster, or smaller.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from course.models.quantise import nearest


def broadcast(vectors, codebook):
    """The definition: every difference between a vector (..., D) and an entry (K, D), squared and summed."""
    return (vectors[..., None, :] - codebook).pow(2).sum(-1).argmin(-1)


def seconds(find, *arguments):
    start = time.perf_counter()
    find(*arguments)
    return time.perf_counter() - start


def peak(find, *arguments):
    """Bytes that are held at most while it works, temporaries included: the profiler sees each one come and go."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        found = find(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    del found
    held, most = 0, 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=512, help="of the codebook (default 512)")
    parser.add_argument("--dim", type=int, default=64, help="channels of each (default 64)")
    parser.add_argument("--side", type=int, default=32, help="of the map of codes (default 32)")
    parser.add_argument("--batch", type=int, default=2, help="maps at once (default 2)")
    parser.add_argument("--repeats", type=int, default=9, help="the median counts (default 9)")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    if options.smoke:
        options.entries, options.dim, options.side, options.repeats = 64, 16, 8, 2
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of missing GPUs and of itself
    torch.manual_seed(0)
    codebook = torch.randn(options.entries, options.dim)
    vectors = torch.randn(options.batch, options.side, options.side, options.dim)
    ways = {"broadcast": broadcast, "product": nearest}
    codes, taken = {name: find(vectors, codebook) for name, find in ways.items()}, {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        for name, find in ways.items():
            spent = seconds(find, vectors, codebook)
            if repeat >= 1:  # the first one warms up
                taken[name].append(1000 * spent)
    milliseconds = {name: median(times) for name, times in taken.items()}
    megabytes = {name: peak(find, vectors, codebook) / 2**20 for name, find in ways.items()}

    size = f"{options.batch} maps of {options.side}x{options.side} codes"
    print(f"{torch.get_num_threads()} threads, {size}, {options.entries} entries of {options.dim} channels")
    print(f"{'':20}{'broadcast':>12}{'product':>12}{'ratio':>8}")
    for what, found in (("milliseconds", milliseconds), ("peak memory in MB", megabytes)):
        slow, fast = found["broadcast"], found["product"]
        print(f"{what:20}{slow:12.2f}{fast:12.2f}{slow / fast:8.1f}")
    same = (codes["broadcast"] == codes["product"]).double().mean().item()
    print(f"{'the same code':20}{same:24.2%}")


if __name__ == "__main__":
    main()
