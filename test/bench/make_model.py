#!/usr/bin/env python3
"""Writes a GGUF model of a real shape with random weights: for speed, not for sense.

    make_model.py SHAPE TYPE OUT.gguf

SHAPE: qwen2.5-0.5b, llama-3.2-1b, llama-3.1-8b, tiny, mini; TYPE: f16, bf16, q8_0, q4_0.
Standard library only. Weights repeat one random row block with a different offset in
every row; norms are ones; the vocabulary is bytes and numbered fillers.
"""
import random
import struct
import sys

SHAPES = {
    # architecture, layers, hidden, heads, kv heads, head dim, ffn, vocabulary, tied, bias, theta
    "qwen2.5-0.5b": ("qwen2", 24, 896, 14, 2, 64, 4864, 151936, True, 1e6),
    "llama-3.1-8b": ("llama", 32, 4096, 32, 8, 128, 14336, 128256, False, 5e5),
    "llama-3.2-1b": ("llama", 16, 2048, 32, 8, 64, 8192, 128256, True, 5e5),
    "mini": ("llama", 2, 64, 4, 2, 16, 128, 512, True, 1e4),
    "tiny": ("llama", 6, 288, 6, 6, 48, 768, 32000, True, 1e4),
}
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
# bytes per block, elements per block
BLOCKS = {"f32": (4, 1), "f16": (2, 1), "bf16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}
POOL_BLOCKS = 1 << 16


def pool(kind, rng):
    """Many random blocks with a standard deviation of about 0.02."""
    if kind == "f32":
        return struct.pack(f"<{POOL_BLOCKS}f", *(rng.gauss(0, 0.02) for _ in range(POOL_BLOCKS)))
    if kind == "f16":
        return struct.pack(f"<{POOL_BLOCKS}e", *(rng.gauss(0, 0.02) for _ in range(POOL_BLOCKS)))
    if kind == "bf16":
        f32 = pool("f32", rng)
        return b"".join(f32[i + 2 : i + 4] for i in range(0, len(f32), 4))
    scale = struct.pack("<e", 0.02 / 73 if kind == "q8_0" else 0.02 / 4.6)
    bits = BLOCKS[kind][0] - 2
    return b"".join(scale + rng.randbytes(bits) for _ in range(POOL_BLOCKS))


def string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def key(name, kind, value):
    codes = {"u32": 4, "f32": 6, "bool": 7, "str": 8}
    head = string(name)
    if kind == "u32":
        return head + struct.pack("<II", 4, value)
    if kind == "f32":
        return head + struct.pack("<If", 6, value)
    if kind == "bool":
        return head + struct.pack("<IB", 7, value)
    if kind == "str":
        return head + struct.pack("<I", 8) + string(value)
    if kind == "strs":
        return head + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
    if kind == "i32s":
        return head + struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    raise KeyError(codes)


def byte_letters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def vocabulary(size):
    tokens = byte_letters() + ["th", "he"]
    tokens += [f"t{i}" for i in range(len(tokens), size - 1)] + ["<|endoftext|>"]
    return tokens, [1] * (size - 1) + [3]


def tensors(shape):
    arch, layers, hidden, heads, kv, dim, ffn, vocab, tied, _ = shape
    yield "token_embd.weight", (vocab, hidden)
    yield "output_norm.weight", (hidden,)
    if not tied:
        yield "output.weight", (vocab, hidden)
    for i in range(layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", (hidden,)
        yield p + "ffn_norm.weight", (hidden,)
        for name, out in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim)):
            yield p + f"attn_{name}.weight", (out, hidden)
            if arch == "qwen2":
                yield p + f"attn_{name}.bias", (out,)
        yield p + "attn_output.weight", (hidden, heads * dim)
        yield p + "ffn_gate.weight", (ffn, hidden)
        yield p + "ffn_up.weight", (ffn, hidden)
        yield p + "ffn_down.weight", (hidden, ffn)


def size_of(kind, dims):
    count = 1
    for d in dims:
        count *= d
    per, block = BLOCKS[kind]
    return count // block * per


def main():
    shape, kind, out = SHAPES[sys.argv[1]], sys.argv[2], sys.argv[3]
    arch, layers, hidden, heads, kv, dim, ffn, vocab, _, theta = shape
    rng = random.Random(1)
    tokens, types = vocabulary(vocab)
    keys = [
        key("general.architecture", "str", arch),
        key("general.name", "str", f"random {sys.argv[1]}"),
        key(f"{arch}.block_count", "u32", layers),
        key(f"{arch}.context_length", "u32", 32768),
        key(f"{arch}.embedding_length", "u32", hidden),
        key(f"{arch}.feed_forward_length", "u32", ffn),
        key(f"{arch}.attention.head_count", "u32", heads),
        key(f"{arch}.attention.head_count_kv", "u32", kv),
        key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", 1e-6),
        key(f"{arch}.rope.freq_base", "f32", theta),
        key(f"{arch}.rope.dimension_count", "u32", dim),
        key(f"{arch}.vocab_size", "u32", vocab),
        key("tokenizer.ggml.model", "str", "gpt2"),
        key("tokenizer.ggml.pre", "str", "qwen2"),
        key("tokenizer.ggml.tokens", "strs", tokens),
        key("tokenizer.ggml.token_type", "i32s", types),
        key("tokenizer.ggml.merges", "strs", ["t h", "h e"]),
        key("tokenizer.ggml.eos_token_id", "u32", vocab - 1),
        key("tokenizer.ggml.bos_token_id", "u32", vocab - 1),
        key("tokenizer.ggml.add_bos_token", "bool", 0),
    ]
    listed = [(n, d, kind if len(d) == 2 else "f32") for n, d in tensors(shape)]
    offset, infos = 0, []
    for name, dims, t in listed:
        infos.append(string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *reversed(dims))
                     + struct.pack("<IQ", TYPES[t], offset))
        offset += (size_of(t, dims) + 31) // 32 * 32
    blocks = pool(kind, rng)
    per = BLOCKS[kind][0]
    with open(out, "wb") as f:
        f.write(struct.pack("<IIQQ", 0x46554747, 3, len(listed), len(keys)))
        f.write(b"".join(keys) + b"".join(infos))
        f.write(bytes(-f.tell() % 32))
        for name, dims, t in listed:
            size = size_of(t, dims)
            if t == "f32":
                f.write(struct.pack("<f", 0.0 if name.endswith("bias") else 1.0) * dims[0])
            else:
                left = size
                while left:
                    start = rng.randrange(POOL_BLOCKS // 2) * per
                    piece = blocks[start : start + min(left, len(blocks) - start)]
                    f.write(piece)
                    left -= len(piece)
            f.write(bytes(-size % 32))


if __name__ == "__main__":
    main()
