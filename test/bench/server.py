#!/usr/bin/env python3
"""Helpers of server.sh: adapters in llama.cpp's form, and a client of llama-server.

    server.py adapters SHAPE RANK N FOLDER        random adapters of all linear modules, F16
    server.py prompts N TOKENS                    texts of so many tokens for make_model.py's vocabulary
    server.py ask URL MODE N TOKENS GENERATE      N requests at once; MODE none, shared or distinct

`ask` prints the seconds to the first and to the last reply.
"""
import json
import random
import struct
import sys
import threading
import time
import urllib.request

from make_model import SHAPES, key, string


def modules(shape):
    _, layers, hidden, heads, kv, dim, ffn, _, _, _ = shape
    for i in range(layers):
        yield f"blk.{i}.attn_q", hidden, heads * dim
        yield f"blk.{i}.attn_k", hidden, kv * dim
        yield f"blk.{i}.attn_v", hidden, kv * dim
        yield f"blk.{i}.attn_output", heads * dim, hidden
        yield f"blk.{i}.ffn_gate", hidden, ffn
        yield f"blk.{i}.ffn_up", hidden, ffn
        yield f"blk.{i}.ffn_down", ffn, hidden


def write_adapter(shape, rank, seed, path):
    rng = random.Random(seed)
    noise = struct.pack("<65536e", *(rng.uniform(-0.01, 0.01) for _ in range(65536)))
    keys = [key("general.type", "str", "adapter"), key("general.architecture", "str", shape[0]),
            key("adapter.type", "str", "lora"), key("adapter.lora.alpha", "f32", float(rank))]
    infos, at = [], 0
    for name, n_in, n_out in modules(shape):
        for side, ne in (("a", (n_in, rank)), ("b", (rank, n_out))):
            infos.append(string(f"{name}.weight.lora_{side}") + struct.pack("<IQQIQ", 2, *ne, 1, at))
            at += (2 * ne[0] * ne[1] + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32))
        f.write((noise * (at // len(noise) + 1))[:at])


def prompts(n, tokens):
    rng = random.Random(7)
    return ["".join(rng.choice("abcdfgijklmnopqrsuvwxyz") for _ in range(tokens)) for _ in range(n)]


def ask(url, mode, n, tokens, generate):
    ends, start = [0.0] * n, time.monotonic()

    def one(i, prompt):
        adapter = {"none": [], "shared": [{"id": 0, "scale": 1.0}], "distinct": [{"id": i, "scale": 1.0}]}[mode]
        body = {"prompt": prompt, "n_predict": generate, "ignore_eos": True, "temperature": 0, "cache_prompt": False, "lora": adapter,
                "response_fields": ["tokens_predicted", "tokens_evaluated"]}  # random weights say what is no UTF-8
        request = urllib.request.Request(url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        reply = json.load(urllib.request.urlopen(request, timeout=600))
        assert reply["tokens_predicted"] == generate and reply["tokens_evaluated"] == tokens, reply
        ends[i] = time.monotonic() - start

    threads = [threading.Thread(target=one, args=x) for x in enumerate(prompts(n, tokens))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(ends)
    print(f"{min(ends):.3f} {max(ends):.3f}")


def main():
    what, *args = sys.argv[1:]
    if what == "adapters":
        for i in range(int(args[2])):
            write_adapter(SHAPES[args[0]], int(args[1]), i, f"{args[3]}/{i}.gguf")
    elif what == "prompts":
        print("\n".join(prompts(int(args[0]), int(args[1]))))
    else:
        ask(args[0], args[1], *map(int, args[2:]))


if __name__ == "__main__":
    main()
