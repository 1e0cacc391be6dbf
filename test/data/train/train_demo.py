#!/usr/bin/env python3
"""Train the demo model: a small Llama and four LoRA adapters, on a CPU.

    train_demo.py --data DATA --doc DOC --work WORK --out ../demo all

DATA  folder with the corpora (see README.md), DOC the unpacked HTML manual of
PostgreSQL 15, WORK a scratch folder, OUT where the shipped files go.  The
steps may be run one by one: tokenizer, base, adapters, evaluate, samples.
"""
import argparse
import csv
import json
import math
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_text import VOICES, held_out, load

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCAB = 4096

# Llama 3's pre-tokenizer, letter for letter.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# Every in and out dimension is a multiple of 64, so that blocks of 32 weights
# divide each row whatever the quantisation.
SHAPE = dict(hidden_size=256, intermediate_size=704, num_hidden_layers=4,
             num_attention_heads=8, num_key_value_heads=4, head_dim=32)

# What the base sees, by tokens.  It should be a generalist that leaves each
# voice room to gain: mostly simple stories, and of the other voices only every
# second document (the adapters see all of them).
MIX = {"stories": .42, "manual": .24, "shakespeare": .13, "grimm": .11, "sql": .10}

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Ranks, alphas and targets differ on purpose: the server has to cope with all
# of them in one batch.
ADAPTERS = {
    "shakespeare": dict(r=16, lora_alpha=32, target_modules=ALL),
    "grimm":       dict(r=8,  lora_alpha=16, target_modules=ALL),
    "manual":      dict(r=32, lora_alpha=32, target_modules=ALL, use_rslora=True),
    "sql":         dict(r=24, lora_alpha=48, target_modules=["q_proj", "v_proj", "o_proj"]),
}

PROMPTS = ["Once upon a time", "The king", "To create an index",
           "Question: Which courses are offered in Fall 2016?\nSQL:"]


# -- tokenizer ----------------------------------------------------------------

def train_tokenizer(texts, out):
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    # The specials come last, as in Llama 3, not first.
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([BOS, EOS])
    assert t.get_vocab_size() == VOCAB
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS}:0 $A:0", pair=f"{BOS}:0 $A:0 {BOS}:1 $B:1",
                                      special_tokens=[(BOS, t.token_to_id(BOS)), (EOS, t.token_to_id(EOS))])])
    PreTrainedTokenizerFast(tokenizer_object=t, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False,
                            model_max_length=1024).save_pretrained(out)
    # The library's own file, not a re-serialised one.
    t.save(str(Path(out) / "tokenizer.json"))
    return t


def open_tokenizer(args):
    return Tokenizer.from_file(str(Path(args.work) / "model" / "tokenizer.json"))


# -- batches ------------------------------------------------------------------

def ids_of(tok, docs):
    """Every passage begins with bos; only the last one of a document ends
    with eos."""
    out = []
    for d in docs:
        for i, e in enumerate(tok.encode_batch(d)):
            out.append(np.array(e.ids + ([tok.token_to_id(EOS)] if i == len(d) - 1 else []), dtype=np.int64))
    return out


class Stream:
    """Endless windows over passages shuffled anew each round."""

    def __init__(self, passages, seed):
        self.p, self.rng = passages, np.random.default_rng(seed)
        self.size = sum(map(len, passages))
        self.buf, self.at, self.read = np.zeros(0, np.int64), 0, 0

    def take(self, n):
        if self.at + n > len(self.buf):
            more = np.concatenate([self.p[i] for i in self.rng.permutation(len(self.p))])
            self.buf, self.at = np.concatenate([self.buf[self.at:], more]), 0
        self.at += n
        self.read += n
        return self.buf[self.at - n:self.at]


def loss_of(model, x):
    logits = model(input_ids=x, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB).float(), x[:, 1:].reshape(-1))


@torch.no_grad()
def held_loss(model, passages, limit=24):
    """Mean loss per token, each passage on its own after bos."""
    model.eval()
    step = max(1, len(passages) // limit)
    total = n = 0
    for p in passages[::step][:limit]:
        if len(p) < 2:
            continue
        x = torch.from_numpy(p[:1024])[None]
        total += loss_of(model, x).item() * (x.shape[1] - 1)
        n += x.shape[1] - 1
    model.train()
    return total / n


def schedule(t, warm=0.03, decay=0.45):
    """Warm up, hold, then down to zero.  `t` is the part of the time budget
    that is spent, so the schedule ends on time on any machine."""
    if t < warm:
        return t / warm
    if t < 1 - decay:
        return 1.0
    return max(0.0, (1 - t) / decay)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Newton-Schulz, 5 rounds), for matrices.

    As torch.optim.Muon with adjust_lr_fn="match_rms_adamw", but in float32 and
    with matrices of one shape stacked: several times faster on a CPU without
    bf16 matrix units.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            shapes = {}
            for p in g["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - g["momentum"])
                shapes.setdefault(p.shape, []).append((p, p.grad.lerp(m, g["momentum"])))
            for shape, items in shapes.items():
                x = torch.stack([u for _, u in items])
                if shape[0] > shape[1]:
                    x = x.mT
                x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                if shape[0] > shape[1]:
                    x = x.mT
                lr = g["lr"] * 0.2 * math.sqrt(max(shape))
                for (p, _), u in zip(items, x):
                    p.mul_(1 - g["lr"] * g["weight_decay"]).add_(u, alpha=-lr)


# -- base ---------------------------------------------------------------------

def save_base(model, tok_dir, out):
    """bf16 on disk; the weights are trained and scored in float32."""
    out = Path(out)
    m = LlamaForCausalLM(model.config)
    m.load_state_dict(model.state_dict())
    m.to(torch.bfloat16).save_pretrained(out)
    for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        src = Path(tok_dir) / f
        if src.exists() and src.resolve() != (out / f).resolve():
            shutil.copy(src, out / f)


def train_base(args, texts, tok):
    torch.manual_seed(1)
    bos, eos = tok.token_to_id(BOS), tok.token_to_id(EOS)
    cfg = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=1024, rms_norm_eps=1e-5,
                      tie_word_embeddings=True, bos_token_id=bos, eos_token_id=eos,
                      rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                      attention_bias=False, mlp_bias=False, hidden_act="silu", initializer_range=0.02, **SHAPE)
    model = LlamaForCausalLM(cfg)
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, max_length=1024)
    for n, p in model.named_parameters():       # shrink what is added to the residual stream
        if n.endswith(("o_proj.weight", "down_proj.weight")):
            p.data /= math.sqrt(2 * cfg.num_hidden_layers)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)

    rng = random.Random(1)
    streams, valid = {}, {}
    for i, v in enumerate(VOICES):
        docs = texts[v]["train"] if v == "stories" else texts[v]["train"][::2]
        streams[v] = Stream(ids_of(tok, docs), seed=i)
        valid[v] = ids_of(tok, texts[v]["valid"])
        print(v, "train tokens", streams[v].size, "valid tokens", sum(map(len, valid[v])), flush=True)

    # Muon for the matrices: on a corpus this small every step counts, and it
    # takes fewer of them than AdamW.  Embeddings and norms stay with AdamW.
    mats = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    opts = [Muon(mats, lr=args.lr),
            torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    if args.adamw:
        opts = [torch.optim.AdamW([{"params": mats, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.95), fused=True)]

    log = csv.writer(open(Path(args.work) / "loss.csv", "w", buffering=1, newline=""))
    log.writerow(["model", "step", "tokens", "seconds", "train_loss"] + [f"valid_{v}" for v in VOICES])
    start, saved, step, tokens, ema = time.time(), time.time(), 0, 0, None
    names, weights = list(MIX), list(MIX.values())
    while True:
        t = (time.time() - start) / (args.minutes * 60)
        if step % 100 == 0 or t >= 1:
            row = [round(held_loss(model, valid[v], 12), 4) for v in VOICES]
            log.writerow(["base", step, tokens, round(time.time() - start), round(ema or 0, 4)] + row)
            print(f"{t:.3f} step {step} tokens {tokens} train {ema or 0:.3f} valid", dict(zip(VOICES, row)), flush=True)
            if t >= 1:
                break
            if time.time() - saved > 180:
                save_base(model, Path(args.work) / "model", Path(args.work) / "model")
                saved = time.time()
        # Longer windows at the end, where the model has something to do with them.
        length = 256 if t < 0.75 else 512
        x = np.stack([streams[rng.choices(names, weights)[0]].take(length) for _ in range(args.batch * 256 // length)])
        lr = args.lr * schedule(t)
        for o in opts:
            for g in o.param_groups:
                g["lr"] = lr
        loss = loss_of(model, torch.from_numpy(x))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + x.size
        ema = loss.item() if ema is None else 0.95 * ema + 0.05 * loss.item()
    for v in VOICES:
        print(v, "rounds over its text", round(streams[v].read / streams[v].size, 2))
    save_base(model, Path(args.work) / "model", Path(args.work) / "model")


def open_base(path):
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


# -- adapters -----------------------------------------------------------------

def train_adapter(args, name, texts, tok):
    """Trained on the bf16 weights that ship, not on the float32 ones before
    rounding.  The best point on the valid split is kept."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    torch.manual_seed(2)
    base = open_base(Path(args.work) / "model")
    out = Path(args.work) / "adapters" / name
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, bias="none", **ADAPTERS[name]))
    stream = Stream(ids_of(tok, texts[name]["train"]), seed=7)
    valid = ids_of(tok, texts[name]["valid"])
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=args.adapter_lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    log = csv.writer(open(Path(args.work) / "loss.csv", "a", buffering=1, newline=""))
    start, step, tokens, ema, best, keep = time.time(), 0, 0, None, float("inf"), None
    print(name, "parameters", sum(p.numel() for p in params), "train tokens", stream.size, flush=True)
    while True:
        t = (time.time() - start) / (args.adapter_minutes * 60)
        if step % 50 == 0 or t >= 1:
            v = held_loss(model, valid, 40)
            row = [round(v, 4) if x == name else "" for x in VOICES]
            log.writerow([name, step, tokens, round(time.time() - start), round(ema or 0, 4)] + row)
            print(f"{name} {t:.3f} step {step} train {ema or 0:.3f} valid {v:.4f}", flush=True)
            if v < best:
                best, keep = v, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            if t >= 1:
                break
        x = np.stack([stream.take(256) for _ in range(8)])
        for g in opt.param_groups:
            g["lr"] = args.adapter_lr * schedule(t, 0.05, 0.6)
        loss = loss_of(model, torch.from_numpy(x))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + x.size
        ema = loss.item() if ema is None else 0.95 * ema + 0.05 * loss.item()
    model.load_state_dict(keep, strict=False)
    model.peft_config["default"].base_model_name_or_path = "openlora-demo"
    model.save_pretrained(out)
    f = out / "adapter_model.safetensors"
    save_file({k: w.to(torch.bfloat16).contiguous() for k, w in load_file(f).items()}, f, metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)
    # One key order and no set order from run to run.
    c = json.loads((out / "adapter_config.json").read_text())
    c["target_modules"] = [m for m in ALL if m in c["target_modules"]]
    (out / "adapter_config.json").write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")


def open_adapter(args, name):
    from peft import PeftModel
    m = open_base(Path(args.work) / "model")
    if name != "base":
        m = PeftModel.from_pretrained(m, Path(args.work) / "adapters" / name, torch_device="cpu", autocast_adapter_dtype=True)
        m = m.float()
    return m.eval()


# -- measures -----------------------------------------------------------------

def ship(args, texts):
    """Copy the weights and write the held-out texts."""
    out = Path(args.out)
    shutil.copytree(Path(args.work) / "model", out / "model", dirs_exist_ok=True)
    shutil.copytree(Path(args.work) / "adapters", out / "adapters", dirs_exist_ok=True)
    (out / "heldout").mkdir(exist_ok=True)
    for v in VOICES:
        with open(out / "heldout" / f"{v}.jsonl", "w", encoding="utf-8") as f:
            for p in held_out(texts[v]["test"]):
                f.write(json.dumps({"text": p}, ensure_ascii=False) + "\n")
    shutil.copy(Path(args.work) / "loss.csv", out / "loss.csv")


@torch.no_grad()
def evaluate(args, tok):
    """bos + passage, every token after bos scored, float32 arithmetic on the
    weights as shipped."""
    out = Path(args.out)
    res = {"definition": "Each passage is encoded alone with bos in front and no eos; every token after bos is scored "
                         "given all before it. sum_logprob is natural log, added in float64 over float32 "
                         "log-softmax; perplexity = exp(-sum_logprob / tokens).",
           "arithmetic": "float32 on the bf16 weights as stored", "texts": {}, "models": {}}
    held = {}
    for v in VOICES:
        passages = [json.loads(x)["text"] for x in open(out / "heldout" / f"{v}.jsonl", encoding="utf-8")]
        held[v] = [tok.encode(p).ids for p in passages]
        res["texts"][v] = {"passages": len(passages), "bytes": sum(len(p.encode()) for p in passages),
                           "tokens": sum(len(x) - 1 for x in held[v])}
    for name in ["base"] + list(ADAPTERS):
        m = open_adapter(args, name)
        res["models"][name] = {}
        for v in VOICES:
            per = []
            for x in held[v]:
                x = torch.tensor(x)[None]
                lp = torch.log_softmax(m(input_ids=x, use_cache=False).logits[0, :-1].float(), -1)
                per.append(lp.gather(1, x[0, 1:, None]).double().sum().item())
            n = sum(len(x) - 1 for x in held[v])
            res["models"][name][v] = {"sum_logprob": round(sum(per), 4), "tokens": n,
                                      "perplexity": round(math.exp(-sum(per) / n), 4),
                                      "passages": [round(p, 4) for p in per]}
        print(f"{name:12}", {v: r["perplexity"] for v, r in res["models"][name].items()}, flush=True)
    text = json.dumps(res, indent=1)
    (out / "perplexity.json").write_text(text + "\n")


@torch.no_grad()
def samples(args, tok):
    """Greedy, and one draw at temperature 0.7 with a fixed seed."""
    res = []
    for name in ["base"] + list(ADAPTERS):
        m = open_adapter(args, name)
        for p in PROMPTS:
            x = torch.tensor(tok.encode(p).ids)[None]
            for temperature in (0, 0.7):
                torch.manual_seed(5)
                kw = dict(do_sample=True, temperature=temperature, top_p=0.95, top_k=0) if temperature else dict(do_sample=False)
                y = m.generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=70,
                               pad_token_id=tok.token_to_id(EOS), **kw)[0, x.shape[1]:].tolist()
                s = tok.decode(y, skip_special_tokens=True)
                res.append({"adapter": name, "prompt": p, "temperature": temperature, "tokens": y, "text": s})
                print(f"[{name}, t={temperature}] {p!r} -> {s!r}", flush=True)
    # Only the greedy ones are a reference: a draw depends on the generator.
    keep = [r for r in res if r["temperature"] == 0]
    (Path(args.out) / "greedy.json").write_text(json.dumps(keep, indent=1, ensure_ascii=False) + "\n")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("steps", nargs="+", choices=["all", "tokenizer", "base", "adapters", "ship", "evaluate", "samples"])
    a.add_argument("--data", required=True)
    a.add_argument("--doc", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--minutes", type=float, default=20, help="time budget of the base")
    a.add_argument("--adapter-minutes", type=float, default=2.5, help="time budget of each adapter")
    a.add_argument("--batch", type=int, default=12, help="windows of 256 tokens per step")
    a.add_argument("--lr", type=float, default=3e-3)
    a.add_argument("--adapter-lr", type=float, default=2e-3)
    a.add_argument("--threads", type=int, default=1,
                   help="on a machine with other work, one: two threads wait for each other at every operation")
    a.add_argument("--adamw", action="store_true", help="AdamW for all of the base, to compare")
    a.add_argument("--only", help="one adapter")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    for p in (args.work, args.out):
        Path(p).mkdir(parents=True, exist_ok=True)
    do = lambda s: s in args.steps or "all" in args.steps
    texts = load(args.data, args.doc)
    if do("tokenizer"):
        # A million characters of each voice at most: a vocabulary of 4096 must
        # not be spent on the manual, which is the longest text.
        def sample():
            for v in VOICES:
                n = 0
                for d in random.Random(3).sample(texts[v]["train"], len(texts[v]["train"])):
                    n += sum(map(len, d))
                    if n > 1_500_000:
                        break
                    yield from d
        train_tokenizer(sample(), Path(args.work) / "model")
    tok = open_tokenizer(args)
    if do("base"):
        train_base(args, texts, tok)
    if do("adapters"):
        for name in [args.only] if args.only else ADAPTERS:
            train_adapter(args, name, texts, tok)
    if do("ship"):
        ship(args, texts)
    if do("evaluate"):
        evaluate(args, tok)
    if do("samples"):
        samples(args, tok)


if __name__ == "__main__":
    main()
