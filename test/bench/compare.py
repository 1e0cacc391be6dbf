#!/usr/bin/env python3
"""Runs our benchmark and, if there is one, llama.cpp's, in turns; prints medians and
ratios. Standard library only."""
import argparse
import json
import re
import statistics
import subprocess
import sys


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def ours(args, prompt, generate, parallel, adapters=0):
    out = run([args.engine, "bench", "--model", args.model, "--prompt", str(prompt), "--generate", str(generate),
               "--parallel", str(parallel), "--adapters", str(adapters), "--rank", "16",
               "--threads", str(args.threads), "--repeats", "1", "--json"])
    row = json.loads(out)
    return row["prefill_tokens_per_second"], row["decode_tokens_per_second"]


def peer_single(args, prompt, generate):
    out = run([f"{args.peer}/llama-bench", "-m", args.model, "-t", str(args.threads), "-p", str(prompt),
               "-n", str(generate), "-r", "1", "-o", "jsonl"])
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    prefill = [r["avg_ts"] for r in rows if r["n_prompt"] and not r["n_gen"]]
    decode = [r["avg_ts"] for r in rows if r["n_gen"] and not r["n_prompt"]]
    return (prefill or [0])[0], (decode or [0])[0]


def peer_batched(args, prompt, generate, parallel):
    out = run([f"{args.peer}/llama-batched-bench", "-m", args.model, "-c", "8192", "-b", "2048", "-ub", "512",
               "-t", str(args.threads), "-npp", str(prompt), "-ntg", str(generate), "-npl", str(parallel),
               "--output-format", "jsonl"])
    row = [json.loads(line) for line in out.splitlines() if line.startswith("{")][-1]
    return row["speed_pp"], row["speed_tg"]


CASES = [  # name, our call, the peer's call, which figure, what the issue asks for
    ("prefill 512", lambda a: ours(a, 512, 1, 1), lambda a: peer_single(a, 512, 0), 0, 1.0),
    ("decode, 1 sequence", lambda a: ours(a, 16, 64, 1), lambda a: peer_single(a, 0, 64), 1, 0.9),
    ("decode, 2 sequences", lambda a: ours(a, 128, 32, 2), lambda a: peer_batched(a, 128, 32, 2), 1, None),
    ("decode, 4 sequences", lambda a: ours(a, 128, 32, 4), lambda a: peer_batched(a, 128, 32, 4), 1, None),
    ("decode, 8 sequences", lambda a: ours(a, 128, 32, 8), lambda a: peer_batched(a, 128, 32, 8), 1, 1.5),
    ("decode, 16 sequences", lambda a: ours(a, 128, 32, 16), lambda a: peer_batched(a, 128, 32, 16), 1, None),
    ("decode, 32 sequences", lambda a: ours(a, 128, 32, 32), lambda a: peer_batched(a, 128, 32, 32), 1, None),
]

OWN = [  # ratios within ours: with adapters against without
    ("prompt 512, 1 adapter", lambda a: ours(a, 512, 1, 1, 1), lambda a: ours(a, 512, 1, 1, 0), 0, 0.85),
    ("decode 8, 1 adapter", lambda a: ours(a, 128, 32, 8, 1), lambda a: ours(a, 128, 32, 8, 0), 1, None),
    ("decode 8, 8 adapters", lambda a: ours(a, 128, 32, 8, 8), lambda a: ours(a, 128, 32, 8, 0), 1, None),
]


def table(args, title, cases, left, right, with_right=True):
    print(f"\n{title}\n{'':24}{left:>12}{right if with_right else '':>12}{'ratio':>8}{'floor':>8}")
    for name, mine, other, which, floor in cases:
        if args.only and not re.search(args.only, name):
            continue
        a, b = [], []
        for _ in range(args.repeats):
            a.append(mine(args)[which])
            if with_right:
                b.append(other(args)[which])
        line = f"{name:24}{statistics.median(a):12.1f}"
        if with_right:
            ratio = statistics.median(x / y for x, y in zip(a, b) if y)
            line += f"{statistics.median(b):12.1f}{ratio:8.2f}"
            line += f"{floor:8.2f}" if floor else ""
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="a regular expression on the names of cases")
    args = parser.parse_args()
    print(f"model {args.model}, {args.threads} threads, medians of {args.repeats}; tokens/s")
    table(args, "base model", CASES, "openlora", "llama.cpp", bool(args.peer))
    table(args, "LoRA, rank 16 on all linear modules", OWN, "with", "without")


if __name__ == "__main__":
    main()
