#!/usr/bin/env python3
"""Train the demo model: a small Llama and four LoRA adapters, on a CPU.

    train_demo.py --data DATA --doc DOC --work WORK --out ../demo all

DATA  folder with the corpora (see README.md), DOC the unpacked HTML manual of
PostgreSQL 15, WORK a scratch folder, OUT where the shipped files go.  The
steps may be run one by one: tokenizer, base, long, adapters, ship, evaluate,
context, samples.  Budgets are in minutes of wall clock and every schedule ends
at zero on time, so the result depends on the machine.
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
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo_text import VOICES, held_out, load

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCAB = 4096

# Llama 3's pre-tokenizer, letter for letter.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# Every in and out dimension is a multiple of 64, so that blocks of 32 weights
# divide each row whatever the quantisation.
SHAPE = dict(hidden_size=256, intermediate_size=704, num_hidden_layers=6,
             num_attention_heads=8, num_key_value_heads=4, head_dim=32)

# The part of each voice's training passages that the base sees.  It should be a
# generalist that leaves each voice room to gain: all of the simple stories, and
# less of the rest; the adapters are trained on what is left.
PART = {"stories": 1.0, "shakespeare": .12, "grimm": .15, "manual": .2, "sql": .08}

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Ranks, alphas and targets differ on purpose: the server has to cope with all
# of them in one batch.
ADAPTERS = {
    "shakespeare": dict(r=16, lora_alpha=32, target_modules=ALL),
    "grimm":       dict(r=8,  lora_alpha=16, target_modules=ALL),
    "manual":      dict(r=32, lora_alpha=32, target_modules=ALL, use_rslora=True),
    "sql":         dict(r=24, lora_alpha=48, target_modules=["q_proj", "v_proj", "o_proj"]),
}

# A larger scale takes a smaller step (manual: scale 5.7; less would have been better).
RATE = {"shakespeare": 3e-3, "grimm": 3e-3, "manual": 2e-3, "sql": 4e-3}
# Minutes of a busy core.
MINUTES = {"shakespeare": 7, "grimm": 6, "manual": 17, "sql": 9}

PROMPTS = ["Once upon a time", "The king", "To create an index",
           "Question: Which courses are offered in Fall 2016?\nSQL:"]


# -- tokenizer ----------------------------------------------------------------

def train_tokenizer(texts, out):
    t = Tokenizer(models.BPE())
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
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1",
                                      special_tokens=[(BOS, t.token_to_id(BOS))])])
    Path(out).mkdir(parents=True, exist_ok=True)
    t.save(str(Path(out) / "tokenizer.json"))
    (Path(out) / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": BOS, "eos_token": EOS, "clean_up_tokenization_spaces": False, "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def open_tokenizer(args):
    return Tokenizer.from_file(str(Path(args.work) / "model" / "tokenizer.json"))


# -- batches ------------------------------------------------------------------

def ids_of(tok, passages):
    """Each passage between bos (the post-processor's) and eos."""
    eos = tok.token_to_id(EOS)
    return [np.array(e.ids + [eos], dtype=np.int64) for e in tok.encode_batch(passages)]


def parted(voice, texts):
    """Training passages of a voice: what the base sees (the same in both of its
    phases), and the rest."""
    p = list(texts[voice]["train"])
    random.Random(3).shuffle(p)
    n = int(len(p) * PART[voice])
    return p[:n], p[n:]


def mix(tok, texts):
    return [x for v in VOICES for x in ids_of(tok, parted(v, texts)[0])]


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


def schedule(t, warm, decay):
    """Warm up, hold, then down to zero.  `t` is the part of the time budget
    that is spent, so the schedule ends on time on any machine."""
    if t < warm:
        return t / warm
    if t < 1 - decay:
        return 1.0
    return max(0.0, (1 - t) / decay)


# -- base ---------------------------------------------------------------------

def save_base(model, out):
    """bf16 on disk; trained and scored in float32."""
    m = LlamaForCausalLM(model.config)
    m.load_state_dict(model.state_dict())
    m.generation_config = GenerationConfig(bos_token_id=model.config.bos_token_id,
                                           eos_token_id=model.config.eos_token_id)
    m.to(torch.bfloat16).save_pretrained(out)
    # Loaders of before transformers 5 look for rope_theta at the top level.
    c = json.loads((out / "config.json").read_text())
    c["rope_theta"] = 10000.0
    (out / "config.json").write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")


def train_base(args, phase, texts, tok):
    """Two phases.  `base` learns the language on windows of 256 tokens, which
    is where a small model learns fastest; `long` goes on at a lower rate on
    windows of 512 and 1024, so that it holds over its context."""
    work = Path(args.work)
    torch.manual_seed(1)
    if phase == "base":
        bos, eos = tok.token_to_id(BOS), tok.token_to_id(EOS)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=True,
            bos_token_id=bos, eos_token_id=eos, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **SHAPE))
        for n, p in model.named_parameters():   # less of what is added to the residual stream
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.02 / (math.sqrt(12) if "o_proj" in n or "down_proj" in n else 1))
        minutes, rate, warm, decay, seed = args.minutes, 2.5e-3, 0.02, 0.45, 0
        if args.resume:   # another round of the first phase, warm and at a lower rate
            model = LlamaForCausalLM.from_pretrained(work / "float", dtype=torch.float32)
            rate, warm, decay, seed = 1.8e-3, 0.05, 0.8, args.resume
    else:
        model = LlamaForCausalLM.from_pretrained(work / "float", dtype=torch.float32)
        minutes, rate, warm, decay, seed = args.long_minutes, 1e-3, 0.03, 0.97, 1000
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)

    stream, rng = Stream(mix(tok, texts), seed), random.Random(seed)
    dev = {v: ids_of(tok, texts[v]["dev"]) for v in VOICES}
    print("tokens of one round", stream.size, flush=True)
    opt = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
         {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.95), fused=True)
    log = csv.writer(open(work / "loss.csv", "w" if phase == "base" and not args.resume else "a", buffering=1, newline=""))
    if phase == "base" and not args.resume:
        log.writerow(["model", "step", "tokens", "seconds", "train_loss"] + [f"dev_{v}" for v in VOICES])
    start, step, tokens, run = time.time(), 0, 0, []
    while True:
        t = (time.time() - start) / (minutes * 60)
        if step % 100 == 0 or t >= 1:
            row = [round(held_loss(model, dev[v], 12), 4) for v in VOICES]
            train = round(sum(run) / len(run), 4) if run else ""
            log.writerow([phase, step, tokens, round(time.time() - start), train] + row)
            print(f"{phase} {t:.3f} step {step} tokens {tokens} train {train} dev", dict(zip(VOICES, row)), flush=True)
            run = []
            model.save_pretrained(work / "float")
            if t >= 1:
                break
        length = 256 if phase == "base" else rng.choices([512, 1024], [0.7, 0.3])[0]
        x = np.stack([stream.take(length) for _ in range(4096 // length)])
        for g in opt.param_groups:
            g["lr"] = rate * schedule(t, warm, decay)
        loss = loss_of(model, torch.from_numpy(x))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + x.size
        run.append(loss.item())
    save_base(model, work / "model")


def open_base(path):
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


# -- adapters -----------------------------------------------------------------

def train_adapter(args, name, texts, tok):
    """Trained on the bf16 weights that ship, not on the float32 ones before
    rounding.  The best point on the dev split is kept."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    torch.manual_seed(2)
    base = open_base(Path(args.work) / "model")
    out = Path(args.work) / "adapters" / name
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, bias="none", **ADAPTERS[name]))
    # What the base has seen it half knows by heart, and that teaches nothing
    # about text it has not seen.
    stream = Stream(ids_of(tok, parted(name, texts)[1]), seed=7)
    dev = ids_of(tok, texts[name]["dev"])
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=RATE[name], betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    log = csv.writer(open(Path(args.work) / "loss.csv", "a", buffering=1, newline=""))
    start, step, tokens, ema, best, keep = time.time(), 0, 0, None, float("inf"), None
    print(name, "parameters", sum(p.numel() for p in params), "train tokens", stream.size, flush=True)
    while True:
        t = (time.time() - start) / ((args.adapter_minutes or MINUTES[name]) * 60)
        if step % 40 == 0 or t >= 1:
            v = held_loss(model, dev, 40)
            row = [round(v, 4) if x == name else "" for x in VOICES]
            log.writerow([name, step, tokens, round(time.time() - start), round(ema or 0, 4)] + row)
            print(f"{name} {t:.3f} step {step} train {ema or 0:.3f} dev {v:.4f}", flush=True)
            if v < best:
                best, keep = v, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            if t >= 1:
                break
        x = np.stack([stream.take(256) for _ in range(8)])
        for g in opt.param_groups:
            g["lr"] = RATE[name] * schedule(t, 0.05, 0.6)
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
    for f in out.rglob("*.safetensors"):
        f.chmod(0o644)
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
def context(args, texts, tok):
    """Does it hold over its length?  Loss by position, on windows of 1024
    tokens of continuous test text."""
    m, edges = open_adapter(args, "base"), [0, 64, 128, 256, 512, 768, 1023]
    for v in ("shakespeare", "grimm", "manual"):
        ids = tok.encode("\n\n".join(texts[v]["test"])).ids
        rows = [torch.tensor([ids[0]] + ids[i:i + 1023]) for i in range(1, len(ids) - 1023, 1023)][:12]
        if not rows:
            continue
        x = torch.stack(rows)
        nll = torch.stack([F.cross_entropy(m(input_ids=r[None], use_cache=False).logits[0, :-1], r[1:], reduction="none")
                           for r in x])
        print("context", v, {f"{a}-{b}": round(nll[:, a:b].mean().item(), 3) for a, b in zip(edges, edges[1:])}, flush=True)


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
                y = m.generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=100,
                               pad_token_id=tok.token_to_id(EOS), **kw)[0, x.shape[1]:].tolist()
                s = tok.decode(y, skip_special_tokens=True)
                res.append({"adapter": name, "prompt": p, "temperature": temperature, "tokens": y, "text": s})
                print(f"[{name}, t={temperature}] {p!r} -> {s!r}", flush=True)
    # Only the greedy ones are a reference: a draw depends on the generator.
    keep = [r for r in res if r["temperature"] == 0]
    (Path(args.out) / "greedy.json").write_text(json.dumps(keep, indent=1, ensure_ascii=False) + "\n")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("steps", nargs="+", choices=["all", "tokenizer", "base", "long", "adapters", "ship", "evaluate", "context", "samples"])
    a.add_argument("--data", required=True)
    a.add_argument("--doc", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--minutes", type=float, default=33, help="time budget of the base's first phase")
    a.add_argument("--long-minutes", type=float, default=7, help="time budget of its second phase")
    a.add_argument("--adapter-minutes", type=float, help="time budget of each adapter, instead of its own")
    a.add_argument("--resume", type=int, default=0, metavar="SEED",
                   help="go on with the first phase from the weights in WORK")
    a.add_argument("--threads", type=int, default=2,
                   help="one on a machine with other work: two wait for each other at every operation")
    a.add_argument("--only", help="one adapter")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    for p in (args.work, args.out):
        Path(p).mkdir(parents=True, exist_ok=True)
    do = lambda s: s in args.steps or "all" in args.steps
    # Tokenizer and first phase saw the SQL as it comes, all else as rewritten.
    texts = load(args.data, args.doc)
    raw = texts
    if do("tokenizer"):
        # Half of the manual: a vocabulary of 4096 should not be spent on it.
        train_tokenizer((p for v in VOICES for p in raw[v]["train"][::2 if v == "manual" else 1]),
                        Path(args.work) / "model")
    tok = open_tokenizer(args)
    if do("base"):
        train_base(args, "base", raw, tok)
    if do("long"):
        train_base(args, "long", texts, tok)
    if do("adapters"):
        for name in [args.only] if args.only else ADAPTERS:
            train_adapter(args, name, texts, tok)
    if do("ship"):
        ship(args, texts)
    if do("evaluate"):
        evaluate(args, tok)
    if do("context"):
        context(args, texts, tok)
    if do("samples"):
        samples(args, tok)


if __name__ == "__main__":
    main()
