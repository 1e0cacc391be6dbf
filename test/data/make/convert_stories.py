#!/usr/bin/env python3
"""convert_stories.py: a llama2.c checkpoint as a Hugging Face folder.

    python3 convert_stories.py FOLDER OUTPUT

FOLDER holds stories260K.bin (llama2.c's version 0: seven int32, then float32 tensors) and
tok512.bin (its tokenizer). OUTPUT gets config.json, model.safetensors (F32) and
tokenizer.model (SentencePiece). Tests run this at check time: standard library only.

llama2.c turns pairs (2i, 2i + 1) of a head by RoPE; Hugging Face turns (i, i + d/2). So
the rows of q and k are put into the other order.
"""

import array
import json
import os
import struct
import sys

HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def fail(text):
    sys.exit("convert_stories.py: " + text)


# -- the checkpoint ------------------------------------------------------------------------


def read_checkpoint(path):
    """The header's fields, and all floats after it."""
    with open(path, "rb") as f:
        header = struct.unpack("<7i", f.read(28))
        floats = array.array("f")
        floats.frombytes(f.read())
    if sys.byteorder == "big":
        floats.byteswap()
    c = dict(zip(HEADER, header))
    c["shared"] = c["vocab_size"] > 0  # negative: the head is stored apart
    c["vocab_size"] = abs(c["vocab_size"])
    if min(header[:5]) <= 0 or c["dim"] % c["n_heads"] or c["n_heads"] % c["n_kv_heads"]:
        fail("%s is no llama2.c checkpoint" % path)
    return c, floats


def to_rotate_half(rows, heads, width):
    """Rows of each head from (0, 1, 2, ...) to (0, 2, 4, ..., 1, 3, 5, ...)."""
    count = len(rows) // width
    size = count // heads
    out = array.array("f")
    for head in range(heads):
        for row in list(range(0, size, 2)) + list(range(1, size, 2)):
            at = (head * size + row) * width
            out.extend(rows[at:at + width])
    return out


def tensors(c, floats):
    """{name: (shape, floats)}, in the file's order: all layers of one kind together."""
    dim, hidden, layers, vocab = c["dim"], c["hidden_dim"], c["n_layers"], c["vocab_size"]
    head = dim // c["n_heads"]
    kv = c["n_kv_heads"] * head
    per_layer = [
        ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (kv, dim)),
        ("self_attn.v_proj", (kv, dim)), ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)), ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)), ("mlp.up_proj", (hidden, dim)),
    ]
    out, at = {}, 0

    def take(name, shape):
        nonlocal at
        n = shape[0] * (shape[1] if len(shape) == 2 else 1)
        if at + n > len(floats):
            fail("the checkpoint is too short")
        out[name] = (shape, floats[at:at + n])
        at += n

    take("model.embed_tokens.weight", (vocab, dim))
    for name, shape in per_layer:
        for layer in range(layers):
            take("model.layers.%d.%s.weight" % (layer, name), shape)
    take("model.norm.weight", (dim,))
    at += c["max_seq_len"] * head  # tables of cosines and sines
    if not c["shared"]:
        take("lm_head.weight", (vocab, dim))
    if at != len(floats):
        fail("%d floats are left over" % (len(floats) - at))
    for name, (shape, values) in out.items():
        if ".q_proj." in name or ".k_proj." in name:
            heads = c["n_heads"] if ".q_proj." in name else c["n_kv_heads"]
            out[name] = (shape, to_rotate_half(values, heads, dim))
    return out


def write_safetensors(path, named):
    header, data = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, (shape, values) in named.items():
        if sys.byteorder == "big":
            values = array.array("f", values)
            values.byteswap()
        begin = len(data)
        data += values.tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def write_config(path, c):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": c["dim"], "intermediate_size": c["hidden_dim"],
        "num_hidden_layers": c["n_layers"], "num_attention_heads": c["n_heads"],
        "num_key_value_heads": c["n_kv_heads"], "vocab_size": c["vocab_size"],
        "max_position_embeddings": c["max_seq_len"], "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": c["shared"], "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    with open(path, "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


# -- the tokenizer ----------------------------------------------------------------------------


def read_tokens(path, vocab):
    """[(score, text)]"""
    with open(path, "rb") as f:
        data = f.read()
    at, tokens = 4, []  # the longest token's length comes first
    while at < len(data) and len(tokens) < vocab:
        score, n = struct.unpack_from("<fi", data, at)
        tokens.append((score, data[at + 8:at + 8 + n]))
        at += 8 + n
    if len(tokens) != vocab or tokens[0][1] != b"<unk>":
        fail("%s is no llama2.c tokenizer of %d tokens" % (path, vocab))
    return tokens


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """One protobuf field: bytes, float or int (bool)."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(int(value) & (1 << 64) - 1)


NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # SentencePiece.Type


def piece(i, score, text):
    """llama2.c writes <s> and </s> with line ends around them, and a space as a space."""
    kind = NORMAL
    if i == 0:
        kind = UNKNOWN
    elif i < 3:
        kind, text = CONTROL, text.strip()
    elif i < 259:
        kind = BYTE
        if text != b"<0x%02X>" % (i - 3):
            fail("token %d is not the byte %d" % (i, i - 3))
    if kind == NORMAL:
        text = text.replace(b" ", "\u2581".encode())
    return field(1, field(1, text) + field(2, float(score)) + field(3, kind))


def write_tokenizer(folder, tokens):
    """sentencepiece_model.proto's ModelProto: pieces, trainer_spec, normalizer_spec."""
    model = b"".join(piece(i, score, text) for i, (score, text) in enumerate(tokens))
    trainer = field(3, 2) + field(4, len(tokens)) + field(35, True)  # BPE, vocab_size, byte_fallback
    trainer += field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)  # unk, bos, eos, pad
    # add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    normalizer = field(1, b"identity") + field(3, True) + field(4, False) + field(5, True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model + field(2, trainer) + field(3, normalizer))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                   "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True}, f, indent=2)
        f.write("\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    source, output = sys.argv[1:]
    c, floats = read_checkpoint(os.path.join(source, "stories260K.bin"))
    os.makedirs(output, exist_ok=True)
    write_config(os.path.join(output, "config.json"), c)
    write_safetensors(os.path.join(output, "model.safetensors"), tensors(c, floats))
    write_tokenizer(output, read_tokens(os.path.join(source, "tok512.bin"), c["vocab_size"]))


if __name__ == "__main__":
    main()
