#!/usr/bin/env python3
"""Golden vectors for merging: what peft's add_weighted_adapter makes of three small adapters.

    make_vectors.py OUT

Run once with the versions in ../train/requirements.txt; the results are checked in. Two
modules of a small model, float32. Parents a and b have rank 4 and different alphas, c has
rank 2 and one module of its own. Of the methods with svd the product B A is kept, as the
factors are unique only up to signs. DARE is kept at density 1, where nothing is random.
"""
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

OUT = Path(sys.argv[1])
IN, MID = 12, 10


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = torch.nn.Module()
        self.self_attn.q_proj = torch.nn.Linear(IN, MID, bias=False)
        self.mlp = torch.nn.Module()
        self.mlp.down_proj = torch.nn.Linear(MID, IN, bias=False)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList([Block()])

    def forward(self, x):
        return x


PARENTS = {"a": dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
           "b": dict(r=4, lora_alpha=2, target_modules=["q_proj", "down_proj"]),
           "c": dict(r=2, lora_alpha=6, target_modules=["q_proj"])}
CASES = []
for method in ("linear", "ties", "magnitude_prune", "dare_linear", "dare_ties"):
    for weights in ([0.7, 0.5], [1.5, -0.4]):
        for density in ([None] if method == "linear" else [1.0] if "dare" in method else [0.3, 0.5, 1.0]):
            for sign in (["total", "frequency"] if "ties" in method else ["total"]):
                CASES.append(dict(method=method, parents=["a", "b"], weights=weights, density=density, sign=sign))
for method in ("cat", "svd", "ties_svd", "magnitude_prune_svd", "dare_linear_svd", "dare_ties_svd"):
    for weights in ([0.7, 0.5, 1.1], [1.5, -0.4, 0.2]):
        for rank in ([None] if method == "cat" else [None, 3]):
            density = None if method in ("cat", "svd") else 1.0 if "dare" in method else 0.4
            CASES.append(dict(method=method, parents=["a", "b", "c"], weights=weights, density=density, sign="total", rank=rank))

torch.manual_seed(0)
model = None
for name, how in PARENTS.items():
    config = LoraConfig(bias="none", **how)
    if model is None:
        model = get_peft_model(Model(), config, adapter_name=name)
    else:
        model.add_adapter(name, config)
    for key, p in model.named_parameters():
        if f".{name}." in key:
            p.data = torch.randn_like(p) * 0.5
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k.replace(f".{name}.", "."): p.detach().clone() for k, p in model.named_parameters() if f".{name}." in k}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", bias="none", **how)) + "\n")

for i, c in enumerate(CASES):
    name = f"m{i}"
    model.add_weighted_adapter(c["parents"], c["weights"], name, combination_type=c["method"], svd_rank=c.get("rank"),
                               density=c["density"], majority_sign_method=c["sign"])
    c["modules"] = {}
    for key, layer in model.named_modules():
        if hasattr(layer, "lora_A") and name in layer.lora_A:
            a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
            entry = dict(delta=(b.double() @ a.double() * layer.scaling[name]).flatten().tolist())
            c["modules"][key.split("layers.0.")[1]] = {k: [float(f"{x:.7g}") for x in v] for k, v in entry.items()}
    model.delete_adapter(name)
(OUT / "vectors.json").write_text(json.dumps(CASES, separators=(",", ":")) + "\n")
print(len(CASES), "cases")
