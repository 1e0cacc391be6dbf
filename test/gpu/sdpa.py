"""sdpa.py [FILE]: what PyTorch's scaled_dot_product_attention makes of bench_attention.c's prefill
shapes. Lines of FILE: the shape as the table names it, a tab, TFLOP/s. On a processor, its small
shape: a test of this script."""
import sys
import time

try:
    import torch
except ImportError:
    print("no torch")
    sys.exit(77)
from torch.nn.functional import scaled_dot_product_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# name, sequences, past, rows, heads, heads of keys, dimensions
SHAPES = [("prefill 2 x 40", 2, 0, 40, 4, 2, 32)] if DEVICE == "cpu" else [
    ("prefill 4096", 1, 0, 4096, 32, 8, 128),
    ("prefill 16384", 1, 0, 16384, 32, 8, 128),
    ("prefill 8 x 512", 8, 0, 512, 32, 8, 128),
    ("prefill 4096, heads of 64", 1, 0, 4096, 14, 2, 64),
    ("prefill 4096, heads of 256", 1, 0, 4096, 16, 8, 256),
]


def timed(what):
    if DEVICE == "cpu":
        begin = time.perf_counter()
        what()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    what()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def seconds(n, rows, heads, kv_heads, dim):
    q = torch.randn(n, heads, rows, dim, device=DEVICE, dtype=torch.bfloat16)
    # keys of a head once a query head: what every version takes, and none reads more slowly
    k, v = (torch.randn(n, kv_heads, rows, dim, device=DEVICE, dtype=torch.bfloat16)
            .repeat_interleave(heads // kv_heads, dim=1) for _ in range(2))
    times = [timed(lambda: scaled_dot_product_attention(q, k, v, is_causal=True)) for _ in range(14)]
    return sorted(times[3:])[5]


with open(sys.argv[1] if len(sys.argv) > 1 else "/dev/stdout", "a") as out:
    for name, n, past, rows, heads, kv_heads, dim in SHAPES:
        t = seconds(n, rows, heads, kv_heads, dim)
        flops = 4 * rows * (past + (rows + 1) / 2) * n * heads * dim
        print(f"attention, {name}\t{flops / t / 1e12:.4g}", file=out, flush=True)
