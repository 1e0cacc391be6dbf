#!/usr/bin/env python3
"""make_gguf.py: GGUF files of the golden models, with llama.cpp's conventions.

    python make_gguf.py        reads ../golden/*, writes ../golden/gguf and ../golden/quants

The conventions are those of llama.cpp's convert_hf_to_gguf.py, convert_lora_to_gguf.py
and llama-quantize: for architecture "llama" the rows of q and k (and of their biases, and
of lora_b) move from rotate-half to interleaved order; the scaled frequencies of Llama 3
become the tensor rope_freqs.weight; vectors stay F32. Logits are transformers' float32
logits with the weights that the file holds, dequantised by gguf-py: they show arithmetic,
not the loss of quantising.
"""

import json
import os
import shutil

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from common import GOLDEN, dump_json, load_model, run_case, versions, write_f32

OUT = os.path.join(GOLDEN, "gguf")
QUANTS = os.path.join(GOLDEN, "quants")

# -- quantisers that gguf-py lacks ----------------------------------------------------------
#
# Plain rounding; ggml searches for better scales. What matters is that the blocks are valid
# and use every field.


def quantize_q4_k(x):
    """[.., n * 256] float32 -> [.., n * 144] bytes: d, dmin (f16), 8 x 6-bit scales and
    minima, 256 nibbles; x = d * scale * q - dmin * minimum"""
    b = np.asarray(x, np.float32).reshape(-1, 8, 32)
    low = np.minimum(b.min(-1), 0)
    scale, minimum = (b.max(-1) - low) / 15, -low
    d = (scale.max(-1) / 63).astype(np.float16)
    dmin = (minimum.max(-1) / 63).astype(np.float16)

    def six_bits(v, unit):
        unit = unit.astype(np.float32)[:, None]
        v = np.divide(v, unit, out=np.zeros_like(v), where=unit != 0)
        return np.clip(np.rint(v), 0, 63).astype(np.uint8)

    sc, mn = six_bits(scale, d), six_bits(minimum, dmin)
    step = d.astype(np.float32)[:, None] * sc
    offset = dmin.astype(np.float32)[:, None] * mn
    q = np.divide(b + offset[..., None], step[..., None], out=np.zeros_like(b),
                  where=step[..., None] != 0)
    q = np.clip(np.rint(q), 0, 15).astype(np.uint8)
    scales = np.concatenate([
        sc[:, :4] | (sc[:, 4:] >> 4 << 6),
        mn[:, :4] | (mn[:, 4:] >> 4 << 6),
        (sc[:, 4:] & 15) | (mn[:, 4:] << 4)], axis=-1)
    q = q.reshape(-1, 4, 2, 32)
    packed = (q[:, :, 0] | (q[:, :, 1] << 4)).reshape(-1, 128)
    blocks = np.concatenate([d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), scales, packed], -1)
    return blocks.reshape(*x.shape[:-1], x.shape[-1] // 256 * 144)


def quantize_q6_k(x):
    """[.., n * 256] float32 -> [.., n * 210] bytes: 256 x 4 low bits, 256 x 2 high bits,
    16 signed scales, d (f16); x = d * scale * (q - 32). Odd groups get a negative scale."""
    b = np.asarray(x, np.float32).reshape(-1, 16, 16)
    scale = np.abs(b).max(-1) / 31 * np.where(np.arange(16) % 2, -1, 1)
    d = (np.abs(scale).max(-1) / 127).astype(np.float16)
    unit = d.astype(np.float32)[:, None]
    sc = np.divide(scale, unit, out=np.zeros_like(scale), where=unit != 0)
    sc = np.clip(np.rint(sc), -127, 127).astype(np.int8)
    step = (unit * sc)[..., None]
    q = np.divide(b, step, out=np.zeros_like(b), where=step != 0)
    q = (np.clip(np.rint(q), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = np.stack([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], 2)
    qh = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    blocks = np.concatenate([ql.reshape(-1, 128), qh.reshape(-1, 64), sc.view(np.uint8),
                             d[:, None].view(np.uint8)], axis=-1)
    return blocks.reshape(*x.shape[:-1], x.shape[-1] // 256 * 210)


def encode(x, kind):
    x = np.ascontiguousarray(x, np.float32)
    if kind == Q.F32:
        return x
    if kind == Q.F16:
        return x.astype(np.float16)
    if kind == Q.Q4_K:
        return quantize_q4_k(x)
    if kind == Q.Q6_K:
        return quantize_q6_k(x)
    return quantize(x, kind)


def check_quantisers():
    x = np.random.default_rng(7).standard_normal((4, 512)).astype(np.float32)
    x[2, :256] = 0
    for kind, bound in ((Q.Q4_K, 0.25), (Q.Q6_K, 0.09), (Q.Q4_0, 0.3), (Q.Q8_0, 0.02)):
        y = dequantize(encode(x, kind), kind)
        again = dequantize(encode(y, kind), kind)
        error = np.abs(x - y).max()
        assert error < bound and np.abs(y - again).max() < bound / 2, (kind, error)


# -- names and row order --------------------------------------------------------------------

STEMS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    stem, end = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, rest = stem[len("model.layers."):].split(".", 1)
        return "blk.%s.%s.%s" % (layer, STEMS[rest], end)
    return "%s.%s" % (STEMS[stem], end)


def permute(w, heads):
    """Rows of a head from rotate-half (i, i + d/2) to interleaved (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def turned_heads(config, name):
    """How many heads a tensor's rows are of, when the architecture turns them; else 0."""
    if config.model_type != "llama":
        return 0
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else 0


def rope_divisors(config):
    """rope_freqs.weight, as the converter computes it."""
    p = config.rope_parameters
    if p["rope_type"] != "llama3":
        return None
    dim, factor, original = config.head_dim, p["factor"], p["original_max_position_embeddings"]
    low, high = original / p["low_freq_factor"], original / p["high_freq_factor"]
    out = []
    for freq in 1.0 / (p["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / dim)):
        wave = 2 * np.pi / freq
        if wave < high:
            out.append(1.0)
        elif wave > low:
            out.append(factor)
        else:
            smooth = (original / wave - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
            out.append(1 / ((1 - smooth) / factor + smooth))
    assert out[0] == 1 and out[-1] == factor and any(1 < x < factor for x in out)
    return np.array(out, np.float32)


# -- writing -------------------------------------------------------------------------------


def add_hyperparameters(w, config, file_type):
    w.add_type("model")
    w.add_name("golden " + w.arch)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_file_type(file_type)
    head = getattr(config, "head_dim", None)
    if w.arch == "llama":
        w.add_vocab_size(config.vocab_size)
        w.add_rope_dimension_count(head)
    if w.arch == "qwen3":
        w.add_key_length(head)
        w.add_value_length(head)
    if config.rope_parameters["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(config.rope_parameters["factor"])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_bpe_tokenizer(w, folder, vocab_size, pre):
    with open(os.path.join(folder, "tokenizer.json")) as f:
        model = json.load(f)["model"]
    tokens, types = [], []
    by_id = {i: t for t, i in model["vocab"].items()}
    for i in range(vocab_size):
        tokens.append(by_id.get(i, "[PAD%d]" % i))
        types.append(gguf.TokenType.CONTROL if i < 3 else
                     gguf.TokenType.NORMAL if i in by_id else gguf.TokenType.UNUSED)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)


def add_spm_tokenizer(w, vocab_size):
    pieces = ["\u2581", "e", "t", "a", "o", "n", "i", "s", "r", "h", "\u2581t", "he", "\u2581the",
              "in", "er", "\u2581a", "nd", "\u2581and", "l", "d", "u", "c", "m"]
    tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)] + pieces
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    types += [gguf.TokenType.NORMAL] * len(pieces)
    scores = [0.0] * 259 + [float(-i) for i in range(len(pieces))]
    while len(tokens) < vocab_size:
        tokens.append("[PAD%d]" % len(tokens))
        types.append(gguf.TokenType.UNUSED)
        scores.append(-10000.0)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_model(path, folder, config, kind_of, file_type, tokenizer):
    w = gguf.GGUFWriter(path, config.model_type)
    add_hyperparameters(w, config, file_type)
    if tokenizer == "spm":
        add_spm_tokenizer(w, config.vocab_size)
    else:
        add_bpe_tokenizer(w, folder, config.vocab_size, tokenizer)
    divisors = rope_divisors(config)
    if divisors is not None:
        w.add_tensor("rope_freqs.weight", divisors)
    weights = load_file(os.path.join(folder, "model.safetensors"))
    for name in sorted(weights, key=gguf_name):
        x = weights[name].float().numpy()
        heads = turned_heads(config, name)
        x = permute(x, heads) if heads else x
        kind = kind_of(gguf_name(name)) if x.ndim == 2 else Q.F32
        w.add_tensor(gguf_name(name), encode(x, kind), raw_dtype=kind)
    finish(w)


# -- reading back ------------------------------------------------------------------------------


def read_tensors(path):
    """{name: float32 array}, {type: count}, as gguf-py reads and dequantises the file."""
    values, kinds = {}, {}
    for t in gguf.GGUFReader(path).tensors:
        shape = tuple(int(d) for d in reversed(t.shape))
        values[t.name] = np.array(dequantize(t.data, t.tensor_type), np.float32).reshape(shape)
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
    return values, kinds


def model_of(values, folder):
    """The transformers model with a file's weights in place of its own."""
    model = load_model(folder)
    config, left = model.config, dict(values)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = left.pop(gguf_name(name))
            heads = turned_heads(config, name)
            p.copy_(torch.from_numpy(unpermute(x, heads) if heads else x))
    divisors = left.pop("rope_freqs.weight", None)
    if divisors is not None:
        theta, dim = config.rope_parameters["rope_theta"], config.head_dim
        plain = 1.0 / (theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim))
        assert np.allclose(plain / divisors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert not left, left.keys()
    return model


FTYPE = gguf.LlamaFileType


def mixed_q4_k(name):
    """As llama-quantize's Q4_K_M does: some tensors keep more bits, a tied head among them."""
    return Q.Q6_K if "ffn_down" in name or "attn_v" in name or name == "token_embd.weight" else Q.Q4_K


FILES = [  # file, golden, kind of 2-D tensors, file type, tokenizer
    ("llama-f32", "llama", Q.F32, FTYPE.ALL_F32, "spm"),
    ("llama-f16", "llama", Q.F16, FTYPE.MOSTLY_F16, "spm"),
    ("llama-bf16", "llama", Q.BF16, FTYPE.MOSTLY_BF16, "spm"),
    ("llama-q8_0", "llama", Q.Q8_0, FTYPE.MOSTLY_Q8_0, "spm"),
    ("llama-q4_0", "llama", Q.Q4_0, FTYPE.MOSTLY_Q4_0, "spm"),
    ("llama_wide-q4_k", "llama_wide", mixed_q4_k, FTYPE.MOSTLY_Q4_K_M, "spm"),
    ("llama_wide-q6_k", "llama_wide", Q.Q6_K, FTYPE.MOSTLY_Q6_K, "spm"),
    ("llama3-f32", "llama3", Q.F32, FTYPE.ALL_F32, "llama-bpe"),
    ("llama_linear_rope-f32", "llama_linear_rope", Q.F32, FTYPE.ALL_F32, "gpt-2"),
    ("qwen2-f32", "qwen2", Q.F32, FTYPE.ALL_F32, "qwen2"),
    ("qwen3-f32", "qwen3", Q.F32, FTYPE.ALL_F32, "qwen2"),
]


def make_file(stem, source, kind, file_type, tokenizer):
    folder = os.path.join(GOLDEN, source)
    path = os.path.join(OUT, stem + ".gguf")
    with open(os.path.join(folder, "golden.json")) as f:
        golden = json.load(f)
    config = AutoConfig.from_pretrained(folder)
    kind_of = kind if callable(kind) else lambda name: kind
    write_model(path, folder, config, kind_of, file_type, tokenizer)
    values, kinds = read_tensors(path)
    case = run_case(model_of(values, folder), golden["input_ids"], OUT, stem, hidden=False)
    info = {"schema": 1, "file": stem + ".gguf", "source": source, "made_with": versions(),
            "tensor_types": kinds, "input_ids": golden["input_ids"], **case}
    info["tolerance"] = {"logits_abs": golden["tolerance"]["logits_abs"]}
    if kind == Q.F32:  # then it is the golden itself
        ours = np.fromfile(os.path.join(OUT, case["logits"]["file"]), "<f4")
        theirs = np.fromfile(os.path.join(folder, golden["cases"][0]["logits"]["file"]), "<f4")
        assert (ours == theirs).all()
        os.remove(os.path.join(OUT, case["logits"]["file"]))
        info["logits"]["file"] = "../%s/%s" % (source, golden["cases"][0]["logits"]["file"])
    dump_json(os.path.join(OUT, stem + ".json"), info)
    print(stem, kinds, "margin", case["greedy_min_margin"], os.path.getsize(path), flush=True)


# -- adapters ---------------------------------------------------------------------------------


def make_adapter(file, source, name):
    """convert_lora_to_gguf: alpha / r is the scale of every module, lora_b turned as W is."""
    folder = os.path.join(GOLDEN, source)
    config = AutoConfig.from_pretrained(folder)
    at = os.path.join(folder, "adapters", name)
    with open(os.path.join(at, "adapter_config.json")) as f:
        peft = json.load(f)
    assert not peft["use_rslora"] and not peft["alpha_pattern"] and not peft["rank_pattern"]
    w = gguf.GGUFWriter(os.path.join(OUT, file), config.model_type)
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_name("golden adapter")
    w.add_string("general.base_model.0.name", "golden " + source)
    w.add_uint32("general.base_model.count", 1)
    w.add_string(gguf.Keys.Adapter.TYPE, "lora")
    w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(peft["lora_alpha"]))
    tensors = load_file(os.path.join(at, "adapter_model.safetensors"))
    for key in sorted(tensors):
        stem, which = key[len("base_model.model."):].rsplit(".lora_", 1)
        x = tensors[key].float().numpy()
        heads = turned_heads(config, stem + ".") if which == "B.weight" else 0
        x = np.ascontiguousarray(permute(x, heads) if heads else x)
        w.add_tensor(gguf_name(stem + ".weight") + (".lora_a" if which[0] == "A" else ".lora_b"), x)
    finish(w)
    check_adapter(file, folder, config, tensors, peft)
    dump_json(os.path.join(OUT, file.replace(".gguf", ".json")),
              {"schema": 1, "file": file, "source": source, "adapter": name,
               "equals": "%s/golden.json, case \"%s\"" % (source, name), "made_with": versions()})
    print(file, os.path.getsize(os.path.join(OUT, file)), flush=True)


def check_adapter(file, folder, config, tensors, peft):
    values, _ = read_tensors(os.path.join(OUT, file))
    for key in [k for k in tensors if ".lora_A." in k]:
        stem = key[len("base_model.model."):].rsplit(".lora_", 1)[0]
        name = gguf_name(stem + ".weight")
        heads = turned_heads(config, stem + ".")
        delta = values[name + ".lora_b"] @ values[name + ".lora_a"]
        delta = unpermute(delta, heads) if heads else delta
        theirs = tensors[key.replace("lora_A", "lora_B")].float() @ tensors[key].float()
        assert np.allclose(delta, theirs.numpy(), atol=1e-6)


# -- bare blocks --------------------------------------------------------------------------------


def make_quants():
    """Random valid blocks: the scales are finite halves, negative and subnormal among them."""
    rng = np.random.default_rng(11)
    halves = {Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_K: [0, 2], Q.Q6_K: [208]}
    for kind, places in halves.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (16, size), dtype=np.uint8)
        for place in places:
            d = (rng.standard_normal(16) * 0.1).astype(np.float16)
            d[3], d[7], d[11] = 0, 3e-7, -60
            raw[:, place:place + 2] = d[:, None].view(np.uint8)
        if kind != Q.Q6_K:
            raw[0, max(places) + 2:] = 255
        write_quants(kind, raw, dequantize(raw, kind), block, size)
    every = np.arange(65536, dtype=np.uint16)
    for kind, exponent in ((Q.F16, 0x7C00), (Q.BF16, 0x7F80)):
        bits = every[(every & exponent) != exponent][::37].copy()
        wide = bits.view(np.float16).astype(np.float32) if kind == Q.F16 else \
            (bits.astype(np.uint32) << 16).view(np.float32)
        write_quants(kind, bits, wide, 1, 2)


def write_quants(kind, raw, values, block, size):
    stem = kind.name.lower()
    raw.tofile(os.path.join(QUANTS, stem + ".bin"))
    index[stem] = {"bytes": stem + ".bin", "block": block, "block_bytes": size,
                   "blocks": raw.nbytes // size, "values": write_f32(QUANTS, stem + ".f32", values)}


index = {}


def main():
    for folder in (OUT, QUANTS):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
    check_quantisers()
    for row in FILES:
        make_file(*row)
    make_adapter("adapter-a.gguf", "llama", "a")
    make_adapter("qwen2-adapter-a.gguf", "qwen2", "a")
    make_quants()
    dump_json(os.path.join(QUANTS, "quants.json"), {"schema": 1, "made_with": versions(), "types": index})


if __name__ == "__main__":
    main()
