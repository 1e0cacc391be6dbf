"""sdpa.py [FILE]: what PyTorch's scaled_dot_product_attention makes of bench_attention.c's prefill
shapes. Lines of FILE: the shape as the table names it, a tab, TFLOP/s."""
import sys

try:
    import torch
except ImportError:
    print("no torch")
    sys.exit(77)
from torch.nn.functional import scaled_dot_product_attention

# name, sequences, past, rows, heads, heads of keys, dimensions
SHAPES = [
    ("prefill 4096", 1, 0, 4096, 32, 8, 128),
    ("prefill 16384", 1, 0, 16384, 32, 8, 128),
    ("prefill 8 x 512", 8, 0, 512, 32, 8, 128),
    ("prefill 4096, heads of 64", 1, 0, 4096, 14, 2, 64),
    ("prefill 4096, heads of 256", 1, 0, 4096, 16, 8, 256),
]


def seconds(n, rows, heads, kv_heads, dim):
    q = torch.randn(n, heads, rows, dim, device="cuda", dtype=torch.bfloat16)
    # keys of a head once a query head: what every version takes, and none reads more slowly
    k, v = (torch.randn(n, kv_heads, rows, dim, device="cuda", dtype=torch.bfloat16)
            .repeat_interleave(heads // kv_heads, dim=1) for _ in range(2))
    times = []
    for _ in range(14):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        scaled_dot_product_attention(q, k, v, is_causal=True)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return sorted(times[3:])[len(times[3:]) // 2]


with open(sys.argv[1] if len(sys.argv) > 1 else "/dev/stdout", "a") as out:
    for name, n, past, rows, heads, kv_heads, dim in SHAPES:
        t = seconds(n, rows, heads, kv_heads, dim)
        flops = 4 * rows * (past + (rows + 1) / 2) * n * heads * dim
        print(f"attention, {name}\t{flops / t / 1e12:.1f}", file=out)
