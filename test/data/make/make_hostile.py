#!/usr/bin/env python3
"""make_hostile.py: small broken models and adapters, each wrong in one way.

    python3 make_hostile.py        writes ../golden/hostile (standard library only)

manifest.json lists them: what to open as what, what is wrong, and a word that the error
(message, detail or hint; letter case aside) has to contain. Entries without such a word
are sound and must open: they show that the fault is the only reason for the others.
"""

import json
import os
import random
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "golden", "hostile")

HIDDEN, HEADS, KV, FFN, VOCAB, LAYERS, RANK = 8, 2, 1, 12, 24, 1, 2
HALF = HIDDEN // HEADS * KV  # rows of k and v

MODULES = {  # out, in
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HALF, HIDDEN),
    "self_attn.v_proj": (HALF, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN),
}

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}

PEFT = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 4, "lora_dropout": 0.0,
    "bias": "none", "target_modules": ["q_proj", "down_proj"], "inference_mode": True,
    "base_model_name_or_path": "golden/hostile/base",
}

rng = random.Random(5)


def floats(n):
    return struct.pack("<%df" % n, *(rng.gauss(0, 0.1) for _ in range(n)))


def count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


# -- safetensors ----------------------------------------------------------------------


def model_tensors():
    """[(name, dtype, shape, bytes)]"""
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = "model.layers.%d." % layer
        for module, shape in MODULES.items():
            shapes[at + module + ".weight"] = shape
        shapes[at + "input_layernorm.weight"] = (HIDDEN,)
        shapes[at + "post_attention_layernorm.weight"] = (HIDDEN,)
    return [(n, "F32", list(s), floats(count(s))) for n, s in sorted(shapes.items())]


def lora_tensors(modules=("self_attn.q_proj", "mlp.down_proj"), rank=RANK):
    out = []
    for m in modules:
        rows, cols = MODULES[m]
        at = "base_model.model.model.layers.0.%s.lora_" % m
        out.append((at + "A.weight", "F32", [rank, cols], floats(rank * cols)))
        out.append((at + "B.weight", "F32", [rows, rank], floats(rows * rank)))
    return out


def header_of(tensors):
    header, at = {}, 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return header, b"".join(t[3] for t in tensors)


def pack(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def safetensors(tensors):
    return pack(*header_of(tensors))


# -- GGUF -------------------------------------------------------------------------------

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5


def gstr(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def value(kind, v):
    if kind == U32:
        return struct.pack("<II", U32, v)
    if kind == F32:
        return struct.pack("<If", F32, v)
    if kind == STRING:
        return struct.pack("<I", STRING) + gstr(v)
    of, items = v
    if of == STRING:
        body = b"".join(gstr(s) for s in items)
    else:
        body = struct.pack("<%d%s" % (len(items), {F32: "f", I32: "i"}[of]), *items)
    return struct.pack("<IIQ", ARRAY, of, len(items)) + body


def gguf_keys():
    tokens = ["<unk>", "<s>", "</s>"] + ["p%d" % i for i in range(VOCAB - 3)]
    return [
        ["general.architecture", STRING, "llama"], ["general.type", STRING, "model"],
        ["llama.vocab_size", U32, VOCAB], ["llama.context_length", U32, 64],
        ["llama.embedding_length", U32, HIDDEN], ["llama.block_count", U32, LAYERS],
        ["llama.feed_forward_length", U32, FFN], ["llama.attention.head_count", U32, HEADS],
        ["llama.attention.head_count_kv", U32, KV], ["llama.rope.freq_base", F32, 10000.0],
        ["llama.rope.dimension_count", U32, HIDDEN // HEADS],
        ["llama.attention.layer_norm_rms_epsilon", F32, 1e-5],
        ["tokenizer.ggml.model", STRING, "llama"],
        ["tokenizer.ggml.tokens", ARRAY, (STRING, tokens)],
        ["tokenizer.ggml.scores", ARRAY, (F32, [0.0] * VOCAB)],
        ["tokenizer.ggml.token_type", ARRAY, (I32, [2, 3, 3] + [1] * (VOCAB - 3))],
        ["tokenizer.ggml.bos_token_id", U32, 1], ["tokenizer.ggml.eos_token_id", U32, 2],
    ]


def gguf_tensors():
    """[[name, type, shape (rows first), bytes]]"""
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    out = [["token_embd.weight", 0, (VOCAB, HIDDEN)], ["output_norm.weight", 0, (HIDDEN,)],
           ["blk.0.attn_norm.weight", 0, (HIDDEN,)], ["blk.0.ffn_norm.weight", 0, (HIDDEN,)]]
    out += [["blk.0.%s.weight" % names[m], 0, s] for m, s in MODULES.items()]
    return [t + [floats(count(t[2]))] for t in out]


def gguf_lora_keys():
    return [["general.architecture", STRING, "llama"], ["general.type", STRING, "adapter"],
            ["adapter.type", STRING, "lora"], ["adapter.lora.alpha", F32, 4.0]]


def gguf_lora_tensors():
    return [["blk.0.attn_q.weight.lora_a", 0, (RANK, HIDDEN), floats(RANK * HIDDEN)],
            ["blk.0.attn_q.weight.lora_b", 0, (HIDDEN, RANK), floats(HIDDEN * RANK)]]


class Gguf:
    """A file in parts, so that each part can be bent before it is put together."""

    def __init__(self, keys=None, tensors=None):
        self.magic, self.version = b"GGUF", struct.pack("<I", 3)
        self.keys = gguf_keys() if keys is None else keys
        self.tensors = gguf_tensors() if tensors is None else tensors
        self.n_tensors = self.n_keys = None
        self.raw_keys, self.offsets, self.cut = b"", {}, None

    def key(self, name):
        return next(k for k in self.keys if k[0] == name)

    def tensor(self, name):
        return next(t for t in self.tensors if t[0] == name)

    def bytes(self):
        infos, data = b"", b""
        for name, kind, shape, body in self.tensors:
            infos += gstr(name) + struct.pack("<I", len(shape))
            infos += b"".join(struct.pack("<Q", d) for d in reversed(shape))
            infos += struct.pack("<IQ", kind, self.offsets.get(name, len(data)))
            data += body + b"\0" * (-len(body) % 32)
        keys = b"".join(gstr(k) + value(kind, v) for k, kind, v in self.keys) + self.raw_keys
        head = self.magic + self.version + struct.pack(
            "<QQ", len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(self.keys) + bool(self.raw_keys) if self.n_keys is None else self.n_keys) + keys + infos
        out = head + b"\0" * (-len(head) % 32) + data
        return out[:self.cut] if self.cut else out


# -- the collection -------------------------------------------------------------------------

manifest = []


def put(path, data):
    path = os.path.join(OUT, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else json.dumps(data, indent=1).encode() + b"\n")


def note(path, kind, wrong, expect):
    entry = {"path": path, "kind": kind, "wrong": wrong, "expect": expect}
    if kind == "adapter":
        entry["base"] = "base"
    manifest.append(entry)


def model(name, wrong, expect, weights=None, config=None, files=None):
    put(name + "/config.json", CONFIG if config is None else config)
    if files is None:
        files = {"model.safetensors": safetensors(model_tensors()) if weights is None else weights}
    for file, data in files.items():
        put(name + "/" + file, data)
    note(name, "model", wrong, expect)


def adapter(name, wrong, expect, config=None, tensors=None, weights=None, file="adapter_model.safetensors"):
    if config != "none":
        merged = config if isinstance(config, bytes) else {**PEFT, **(config or {})}
        put(name + "/adapter_config.json", merged)
    if weights is None:
        weights = safetensors(lora_tensors() if tensors is None else tensors)
    put(name + "/" + file, weights)
    note(name, "adapter", wrong, expect)


def gguf_model(name, wrong, expect, bend=None):
    g = Gguf()
    if bend:
        bend(g)
    put(name + ".gguf", g.bytes())
    note(name + ".gguf", "model", wrong, expect)


def gguf_adapter(name, wrong, expect, bend=None):
    g = Gguf(gguf_lora_keys(), gguf_lora_tensors())
    if bend:
        bend(g)
    put(name + ".gguf", g.bytes())
    note(name + ".gguf", "adapter", wrong, expect)


# -- what is wrong -----------------------------------------------------------------------------


def bent_header(change):
    header, data = header_of(model_tensors())
    change(header)
    return pack(header, data)


def set_in(tensor, key, v):
    return lambda header: header["model.layers.0." + tensor].__setitem__(key, v)


def safetensors_models():
    whole = safetensors(model_tensors())
    header, data = header_of(model_tensors())
    text = json.dumps(header).encode()
    norm, gate = "input_layernorm.weight", "mlp.gate_proj.weight"
    begin, end = header["model.layers.0." + norm]["data_offsets"]
    model("st-empty", "a file of no bytes", "short", b"")
    model("st-short", "5 bytes", "short", whole[:5])
    model("st-header-length", "header length one past the end of the file", "header length",
          struct.pack("<Q", len(whole) - 7) + whole[8:])
    model("st-header-huge", "header length 2^63", "header length", struct.pack("<Q", 1 << 63) + whole[8:])
    model("st-header-not-json", "header is not JSON", "JSON", pack(text[:-1], data))
    model("st-header-array", "header is a JSON array", "JSON", pack(b"[1, 2, 3]", data))
    model("st-header-deep", "header nested 5000 deep", "JSON", pack(b"{\"a\":" + b"[" * 5000, data))
    model("st-duplicate", "the same name twice", "duplicate",
          pack(text[:-1] + b", \"model.norm.weight\": " +
               json.dumps(header["model.norm.weight"]).encode() + b"}", data))
    model("st-overlap", "a tensor begins 4 bytes inside the one before it", "overlaps",
          bent_header(set_in(norm, "data_offsets", [begin - 4, end - 4])))
    model("st-past-end", "a tensor ends past the file", "past the end",
          bent_header(set_in(norm, "data_offsets", [len(data) - 4, len(data) + len(data) - 4])))
    model("st-offset-huge", "offsets near 2^63", "past the end",
          bent_header(set_in(norm, "data_offsets", [(1 << 63) - 40, (1 << 63) - 8])))
    model("st-offset-negative", "a negative offset", "data_offsets",
          bent_header(set_in(norm, "data_offsets", [-32, 0])))
    model("st-offset-reversed", "the end lies before the beginning", "data_offsets",
          bent_header(set_in(norm, "data_offsets", [end, begin])))
    model("st-truncated", "the last 40 bytes are missing", "past the end", whole[:-40])
    model("st-trailing", "bytes that belong to no tensor", "no tensor", whole + b"\0" * 16)
    model("st-shape-overflow", "a product of dimensions that overflows 64 bits to the right size", "overflow",
          bent_header(set_in(norm, "shape", [24, ((1 << 61) + 1) // 3])))  # 2^64 + 8
    model("st-shape-negative", "a negative dimension", "negative",
          bent_header(set_in(norm, "shape", [-HIDDEN])))
    model("st-shape-size", "a shape larger than the tensor's bytes", "size",
          bent_header(set_in(norm, "shape", [HIDDEN + 1])))
    model("st-dtype-integer", "weights of type I32", "I32", bent_header(set_in(gate, "dtype", "I32")))
    model("st-dtype-unknown", "weights of an unknown type", "F13", bent_header(set_in(gate, "dtype", "F13")))
    missing = [t for t in model_tensors() if gate not in t[0]]
    model("st-missing", "a tensor of the model is missing", "missing", safetensors(missing))
    turned = [(n, d, s[::-1] if gate in n else s, b) for n, d, s, b in model_tensors()]
    model("st-shape-turned", "a matrix is transposed", "wrong shape", safetensors(turned))
    extra = model_tensors() + [("model.layers.0.mlp.router.weight", "F32", [4], floats(4))]
    model("st-unexpected", "a tensor that the family does not have", "unexpected", safetensors(extra))

    first, second = model_tensors()[:5], model_tensors()[5:]
    index = {n: "one.safetensors" for n, _, _, _ in first}
    index.update({n: "two.safetensors" for n, _, _, _ in second})
    shards = {"one.safetensors": safetensors(first), "two.safetensors": safetensors(second)}

    def indexed(weight_map):
        return {"model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map}}

    model("st-index-ok", "nothing", None, files={**indexed(index), **shards})
    model("st-index-traversal", "the index names a file in another folder", "name",
          files={**indexed({n: "../base/model.safetensors" for n in index})})
    model("st-index-no-shard", "the index names a file that is not there", "two.safetensors",
          files={**indexed(index), "one.safetensors": shards["one.safetensors"]})
    model("st-index-two-shards", "a tensor lies in both shards", "two shards",
          files={**indexed(index), **shards, "two.safetensors": safetensors(second + first[-1:])})


def configs():
    def without(key):
        return {k: v for k, v in CONFIG.items() if k != key}

    cases = {
        "cfg-architecture": ("a family that we do not have", "architecture",
                             {**CONFIG, "architectures": ["MambaForCausalLM"], "model_type": "mamba"}),
        "cfg-class": ("a sequence classifier", "architecture",
                      {**CONFIG, "architectures": ["LlamaForSequenceClassification"]}),
        "cfg-not-json": ("config.json is not JSON", "JSON", b"{\"hidden_size\": 8,"),
        "cfg-number-overflow": ("a number beyond double", "JSON",
                                json.dumps(CONFIG).replace("1e-05", "1e999").encode()),
        "cfg-no-hidden": ("hidden_size is missing", "hidden_size", without("hidden_size")),
        "cfg-hidden-zero": ("hidden_size is 0", "hidden_size", {**CONFIG, "hidden_size": 0}),
        "cfg-hidden-text": ("hidden_size is a string", "hidden_size", {**CONFIG, "hidden_size": "8"}),
        "cfg-layers-huge": ("a billion layers", "num_hidden_layers", {**CONFIG, "num_hidden_layers": 10**9}),
        "cfg-vocab-negative": ("a negative vocabulary", "vocab_size", {**CONFIG, "vocab_size": -VOCAB}),
        "cfg-heads": ("3 key-value heads for 4 heads", "evenly",
                      {**CONFIG, "num_attention_heads": 4, "num_key_value_heads": 3}),
        "cfg-head-dim-odd": ("an odd head_dim", "odd", {**CONFIG, "head_dim": 3}),
        "cfg-eps": ("a norm epsilon of 0", "epsilon", {**CONFIG, "rms_norm_eps": 0}),
        "cfg-rope-type": ("a rope scaling that nobody has", "spiral",
                          {**CONFIG, "rope_scaling": {"rope_type": "spiral", "factor": 4.0}}),
        "cfg-rope-factor": ("linear scaling by 0", "factor",
                            {**CONFIG, "rope_scaling": {"rope_type": "linear", "factor": 0}}),
        "cfg-act": ("another activation", "hidden_act", {**CONFIG, "hidden_act": "gelu"}),
        "cfg-quantised": ("weights quantised by another library", "quantization_config",
                          {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}),
        "cfg-eos": ("eos outside of the vocabulary", "eos_token_id", {**CONFIG, "eos_token_id": VOCAB}),
    }
    for name, (wrong, expect, config) in cases.items():
        put(name + "/config.json", config)  # no weights: the configuration is read first
        note(name, "model", wrong, expect)


def ggufs():
    def attr(**values):
        return lambda g: [setattr(g, k, v) for k, v in values.items()]

    def in_tensor(name, place, v):
        return lambda g: g.tensor(name).__setitem__(place, v)

    def in_key(name, kind, v):
        def bend(g):
            g.key(name)[1:] = [kind, v]
        return bend

    size = len(Gguf().bytes())
    gate, norm = "blk.0.ffn_gate.weight", "output_norm.weight"
    nest = gstr("x") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 2000 + struct.pack("<IQ", U32, 0)
    gguf_model("gguf-ok", "nothing", None)
    gguf_model("gguf-magic", "another magic", "magic", attr(magic=b"GGML"))
    gguf_model("gguf-version-1", "version 1", "version", attr(version=struct.pack("<I", 1)))
    gguf_model("gguf-big-endian", "big-endian", "version", attr(version=struct.pack(">I", 3)))
    gguf_model("gguf-short", "cut off after 20 bytes", "count", attr(cut=20))
    gguf_model("gguf-count-tensors", "2^62 tensors", "count", attr(n_tensors=1 << 62))
    gguf_model("gguf-count-keys", "2^62 keys", "count", attr(n_keys=1 << 62))
    gguf_model("gguf-count-one-more", "one key more than there are", "cut off",
               attr(n_keys=len(gguf_keys()) + 1))
    gguf_model("gguf-key-length", "a key of 2^63 bytes", "key",
               attr(raw_keys=struct.pack("<Q", 1 << 63) + b"x" * 8 + struct.pack("<II", U32, 1)))
    gguf_model("gguf-string-length", "a string of 2^64 - 1 bytes", "end of the file",
               attr(raw_keys=gstr("x") + struct.pack("<IQ", STRING, (1 << 64) - 1) + b"abc"))
    gguf_model("gguf-array-count", "an array of 2^61 numbers of 8 bytes", "end of the file",
               attr(raw_keys=gstr("x") + struct.pack("<IIQ", ARRAY, 10, 1 << 61) + b"abc"))
    gguf_model("gguf-array-deep", "arrays nested 2000 deep", "malformed", attr(raw_keys=nest))
    gguf_model("gguf-value-type", "a value of unknown type", "malformed",
               attr(raw_keys=gstr("x") + struct.pack("<II", 77, 1)))
    gguf_model("gguf-key-twice", "the same key twice", "twice",
               attr(raw_keys=gstr("llama.block_count") + value(U32, 1)))
    gguf_model("gguf-key-kind", "embedding_length is a string", "integer",
               in_key("llama.embedding_length", STRING, "8"))
    gguf_model("gguf-key-missing", "block_count is missing", "block_count",
               lambda g: g.keys.remove(g.key("llama.block_count")))
    gguf_model("gguf-epsilon-nan", "a norm epsilon that is NaN", "finite",
               in_key("llama.attention.layer_norm_rms_epsilon", F32, float("nan")))
    gguf_model("gguf-architecture", "an architecture that we do not have", "architecture",
               in_key("general.architecture", STRING, "mamba"))
    gguf_model("gguf-alignment", "an alignment of 24", "alignment",
               lambda g: g.keys.append(["general.alignment", U32, 24]))
    gguf_model("gguf-alignment-zero", "an alignment of 0", "alignment",
               lambda g: g.keys.append(["general.alignment", U32, 0]))
    gguf_model("gguf-truncated", "the last 100 bytes of the data are missing", "past the end",
               attr(cut=size - 100))
    gguf_model("gguf-truncated-list", "cut off in the tensor list", "cut off",
               attr(cut=Gguf().bytes().index(b"blk.0.ffn_up.weight") + 10))
    gguf_model("gguf-offset", "an offset near 2^64", "past the end",
               attr(offsets={norm: (1 << 64) - 64}))
    gguf_model("gguf-offset-unaligned", "an offset that is not aligned", "aligned",
               attr(offsets={norm: 4}))
    gguf_model("gguf-type-unsupported", "a type that we do not read (Q5_0)", "Q5_0",
               lambda g: (g.tensor(gate).__setitem__(1, 6), g.tensor(gate).__setitem__(2, (FFN, 32)),
                          g.tensor(gate).__setitem__(3, bytes(FFN * 22))))
    gguf_model("gguf-type-unknown", "a type that nobody knows", "type", in_tensor(gate, 1, 999))
    gguf_model("gguf-blocks", "rows of 8 in blocks of 32", "blocks", in_tensor(gate, 1, 8))
    gguf_model("gguf-dimensions", "5 dimensions", "dimensions",
               in_tensor(gate, 2, (FFN, HIDDEN, 1, 1, 1)))
    gguf_model("gguf-dimension-zero", "a dimension of 0", "dimension",
               in_tensor(gate, 2, (0, HIDDEN)))
    gguf_model("gguf-shape-overflow", "2^32 x 2^32 elements", "overflow",
               in_tensor(gate, 2, (1 << 32, 1 << 32)))
    gguf_model("gguf-shape-turned", "a matrix is transposed", "wrong shape",
               in_tensor(gate, 2, (HIDDEN, FFN)))
    gguf_model("gguf-tensor-twice", "the same tensor twice", "twice",
               in_tensor("blk.0.ffn_up.weight", 0, gate))
    gguf_model("gguf-tensor-missing", "a tensor of the model is missing", "missing",
               lambda g: g.tensors.remove(g.tensor(gate)))
    gguf_model("gguf-is-adapter", "an adapter given as a model", "adapter",
               in_key("general.type", STRING, "adapter"))

    b = "blk.0.attn_q.weight.lora_b"
    gguf_adapter("gguf-lora-ok", "nothing", None)
    gguf_adapter("gguf-lora-is-model", "a model given as an adapter", "adapter",
                 in_key("general.type", STRING, "model"))
    gguf_adapter("gguf-lora-type", "another kind of adapter", "adapter.type",
                 in_key("adapter.type", STRING, "control"))
    gguf_adapter("gguf-lora-architecture", "for another architecture", "qwen3",
                 in_key("general.architecture", STRING, "qwen3"))
    gguf_adapter("gguf-lora-alpha", "an alpha that is infinite", "finite",
                 in_key("adapter.lora.alpha", F32, float("inf")))
    gguf_adapter("gguf-lora-no-b", "B is missing", "lacks", lambda g: g.tensors.remove(g.tensor(b)))
    gguf_adapter("gguf-lora-shape", "B is transposed", "shape", in_tensor(b, 2, (RANK, HIDDEN)))
    gguf_adapter("gguf-lora-embedding", "adapts the embedding", "not supported",
                 in_tensor(b, 0, "token_embd.weight.lora_b"))
    gguf_adapter("gguf-lora-layer", "a layer that the base lacks", "layer",
                 lambda g: [t.__setitem__(0, t[0].replace("blk.0", "blk.5")) for t in g.tensors])


def adapters():
    at = "base_model.model.model.layers.0."
    q_b = at + "self_attn.q_proj.lora_B.weight"

    def changed(name, dtype=None, shape=None, data=None, rename=None):
        return [(rename or n, dtype or d, shape or s, data or b) if n == name else (n, d, s, b)
                for n, d, s, b in lora_tensors()]

    def extra(name, shape):
        return lora_tensors() + [(name, "F32", shape, floats(count(shape)))]

    adapter("lora-ok", "nothing", None)
    adapter("lora-dora", "use_dora", "use_dora", {"use_dora": True})
    adapter("lora-lora-bias", "lora_bias", "lora_bias", {"lora_bias": True})
    adapter("lora-bias", "bias \"all\"", "bias", {"bias": "all"})
    adapter("lora-modules-to-save", "modules_to_save", "modules_to_save",
            {"modules_to_save": ["lm_head"]})
    adapter("lora-token-indices", "trainable_token_indices", "trainable_token_indices",
            {"trainable_token_indices": [1, 2]})
    adapter("lora-replication", "layer_replication", "layer_replication",
            {"layer_replication": [[0, 1], [0, 1]]})
    adapter("lora-fan-in", "fan_in_fan_out", "fan_in_fan_out", {"fan_in_fan_out": True})
    adapter("lora-parameters", "target_parameters", "target_parameters",
            {"target_parameters": ["mlp.experts.gate_up_proj"]})
    adapter("lora-alora", "alora_invocation_tokens", "alora_invocation_tokens",
            {"alora_invocation_tokens": [5, 6]})
    adapter("lora-qalora", "use_qalora", "use_qalora",
            {"use_qalora": True, "qalora_group_size": 16})
    adapter("lora-unknown-key", "a key of the future that is switched on", "use_tomorrow",
            {"use_tomorrow": True})
    adapter("lora-pissa", "belongs to a changed base", "init_lora_weights",
            {"init_lora_weights": "pissa"})
    adapter("lora-type", "IA3 instead of LoRA", "peft_type", {"peft_type": "IA3"})
    adapter("lora-task", "a sequence classifier's", "task_type", {"task_type": "SEQ_CLS"})
    adapter("lora-target", "targets a module that is none of ours", "router",
            {"target_modules": ["q_proj", "down_proj", "router"]},
            tensors=extra(at + "mlp.router.lora_A.weight", [RANK, HIDDEN]) +
            extra(at + "mlp.router.lora_B.weight", [HIDDEN, RANK])[-1:])
    adapter("lora-target-head", "targets the head", "lm_head",
            {"target_modules": ["q_proj", "down_proj", "lm_head"]},
            tensors=extra("base_model.model.lm_head.lora_A.weight", [RANK, HIDDEN]) +
            extra("base_model.model.lm_head.lora_B.weight", [VOCAB, RANK])[-1:])
    adapter("lora-no-target", "target_modules is missing", "target_modules",
            {"target_modules": None})
    adapter("lora-regex", "target_modules is no regular expression", "regular expression",
            {"target_modules": ".*(q_proj|down_proj"})
    adapter("lora-regex-work", "target_modules takes exponential work", "work",
            {"target_modules": "((.+)+)+[!?]"})
    adapter("lora-rank", "r is 3, the tensors have rank 2", "shape", {"r": 3})
    adapter("lora-rank-pattern", "rank_pattern gives down_proj rank 5", "shape",
            {"rank_pattern": {"down_proj": 5}})
    adapter("lora-rank-zero", "r is 0", "range", {"r": 0})
    adapter("lora-rank-huge", "r is 2^40", "range", {"r": 1 << 40})
    adapter("lora-alpha", "lora_alpha is a string", "lora_alpha", {"lora_alpha": "4"})
    adapter("lora-alpha-huge", "lora_alpha is 1e308", "lora_alpha", {"lora_alpha": 1e308})
    adapter("lora-config-json", "adapter_config.json is not JSON", "JSON",
            b"{\"peft_type\": \"LORA\"")
    adapter("lora-config-missing", "there is no adapter_config.json", "adapter_config.json", "none")
    adapter("lora-not-in-file", "v_proj is targeted and has no tensors", "v_proj",
            {"target_modules": ["q_proj", "down_proj", "v_proj"]})
    adapter("lora-not-targeted", "down_proj has tensors and is not targeted", "down_proj",
            {"target_modules": ["q_proj"]})
    adapter("lora-no-b", "q_proj has no B", "q_proj",
            tensors=[t for t in lora_tensors() if t[0] != q_b])
    adapter("lora-shape-in", "A is for a wider base", "shape",
            tensors=changed(at + "self_attn.q_proj.lora_A.weight", shape=[RANK, 2 * HIDDEN], data=floats(RANK * 2 * HIDDEN)))
    adapter("lora-shape-1d", "B has one dimension", "shape",
            tensors=changed(q_b, shape=[HIDDEN * RANK]))
    adapter("lora-dtype", "B is of type I8", "I8",
            tensors=changed(q_b, dtype="I8", data=bytes(HIDDEN * RANK)))
    adapter("lora-nan", "B holds a NaN", "NaN",
            tensors=changed(q_b, data=floats(HIDDEN * RANK - 1) + struct.pack("<f", float("nan"))))
    adapter("lora-infinite", "B holds an infinite value", "infinite",
            tensors=changed(q_b, data=floats(HIDDEN * RANK - 1) + struct.pack("<f", float("inf"))))
    adapter("lora-layer", "a layer that the base lacks", "layer",
            tensors=lora_tensors() + [(n.replace("layers.0", "layers.7"), d, s, b) for n, d, s, b in lora_tensors()])
    adapter("lora-layer-huge", "layer 99999999999999999999", "layers.99999999999999999999",
            tensors=changed(q_b, rename=q_b.replace("layers.0", "layers.99999999999999999999")))
    adapter("lora-embedding", "adapts the embedding", "lora_embedding_A",
            tensors=extra("base_model.model.model.embed_tokens.lora_embedding_A", [RANK, VOCAB]))
    adapter("lora-magnitude", "has a DoRA magnitude", "lora_magnitude_vector",
            tensors=extra(at + "self_attn.q_proj.lora_magnitude_vector", [HIDDEN]))
    adapter("lora-twice", "one matrix in two spellings", "q_proj",
            tensors=extra(at + "self_attn.q_proj.lora_B.default.weight", [HIDDEN, RANK]))
    adapter("lora-empty", "the weights file is empty", "empty", weights=b"")
    adapter("lora-truncated", "the last 8 bytes are missing", "past the end",
            weights=safetensors(lora_tensors())[:-8])
    adapter("lora-header", "a header length past the end", "header length",
            weights=struct.pack("<Q", 1 << 20) + safetensors(lora_tensors())[8:])
    # An empty dict, as a pickle; and the first bytes of the zip that torch.save writes.
    adapter("lora-bin", "adapter_model.bin", "pickle",
            weights=b"\x80\x02}q\x00.", file="adapter_model.bin")
    adapter("lora-bin-renamed", "a pickle named .safetensors", "pickle", weights=b"\x80\x02}q\x00.")
    adapter("lora-zip-renamed", "a torch zip named .safetensors", "pickle",
            weights=b"PK\x03\x04" + bytes(26) + b"archive/data.pkl\x80\x02}q\x00.")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    model("base", "nothing", None)
    safetensors_models()
    configs()
    ggufs()
    adapters()
    assert len({e["path"] for e in manifest}) == len(manifest)
    rows = ",\n ".join(json.dumps(e) for e in manifest)
    with open(os.path.join(OUT, "manifest.json"), "w") as f:
        f.write("[" + rows + "]\n")
    total = sum(os.path.getsize(os.path.join(d, x)) for d, _, fs in os.walk(OUT) for x in fs)
    print(len(manifest), "fixtures,", total, "bytes")


if __name__ == "__main__":
    main()
