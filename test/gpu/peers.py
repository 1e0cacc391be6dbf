"""peers.py SHAPE [FILE]: transformers' and peft's generate on the same shape, with random weights.

Decoding of 8 requests, tokens a second: no adapter, one for all, and 8 different ones in one batch
(`adapter_names`). Lines of FILE: the case as the table names it, a tab, tokens a second. Ends with
status 77 and a word where a package is missing. SHAPE `mini` runs on a processor, too.
"""
import sys
import time

try:
    import torch
    import peft
    import transformers
except ImportError as e:
    print(f"no {e.name}")
    sys.exit(77)

# its name in the table, hidden, ffn, layers, heads, kv heads, vocabulary, tied
SHAPES = {
    "llama-3.1-8b": ("8B", 4096, 14336, 32, 32, 8, 128256, False),
    "llama-3.2-1b": ("1B", 2048, 8192, 16, 32, 8, 128256, True),
    "qwen2.5-0.5b": ("0.5B", 896, 4864, 24, 14, 2, 151936, True),
    "mini": ("mini", 64, 128, 2, 4, 2, 512, True),
}
BATCH, PROMPT, RANK = 8, 128, 16
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(shape, device):
    _, hidden, ffn, layers, heads, kv, vocab, tied = SHAPES[shape]
    family = "Qwen2" if shape.startswith("qwen") else "Llama"
    config = getattr(transformers, family + "Config")(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=tied,
        max_position_embeddings=4096, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = getattr(transformers, family + "ForCausalLM")(config)
    torch.set_default_dtype(before)
    return model.eval()


def seconds(model, device, tokens, **more):
    ids = torch.randint(1, 500, (BATCH, PROMPT), device=device)
    times = []
    for _ in range(3):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                       min_new_tokens=tokens, max_new_tokens=tokens, **more)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times)[1]


def rate(model, device, generate, **more):
    """Without the prompt: of a long answer and a short one the difference."""
    return BATCH * (generate - 2) / (seconds(model, device, generate, **more) - seconds(model, device, 2, **more))


def main():
    shape, path = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "/dev/stdout"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generate = 34 if shape != "mini" else 6
    name = SHAPES[shape][0]

    def tell(what, value):
        with open(path, "a") as out:
            print(f"engine, {name}, {BATCH} requests, {what}\t{value:.1f}", file=out)

    with torch.no_grad():
        model = make(shape, device)
        tell("no adapter", rate(model, device, generate))
        lora = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR, init_lora_weights=False)
        model = peft.get_peft_model(model, lora, adapter_name="a0").to(torch.bfloat16).eval()
        tell("1 adapter", rate(model, device, generate))
        for i in range(1, BATCH):
            model.add_adapter(f"a{i}", lora)
        model = model.to(torch.bfloat16).eval()
        tell(f"{BATCH} adapters", rate(model, device, generate, adapter_names=[f"a{i}" for i in range(BATCH)]))


main()
