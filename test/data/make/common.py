"""common.py: what the golden scripts share: running a reference model, writing vectors."""

import copy
import json
import os
import platform
import warnings

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
GREEDY_STEPS = 64


def versions():
    import gguf  # noqa: F401 (its version only)
    import peft
    import safetensors
    from importlib.metadata import version

    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "safetensors": safetensors.__version__,
        "gguf": version("gguf"),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def load_model(folder):
    """A Hugging Face folder as float32, with the plainest attention there is."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def forward(model, ids):
    """(logits [n, vocab], final hidden states after the last norm [n, hidden])"""
    out = model(
        input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True
    )
    final = out.hidden_states[-1]
    assert torch.equal(model.get_output_embeddings()(final), out.logits)  # it is normed
    return out.logits[0], final[0]


def float64_logits(model, ids):
    """The same model with float64 arithmetic. transformers keeps RMSNorm and the rotary
    angles in float32 whatever the model's type, so this bounds only matmul rounding."""
    return forward(copy.deepcopy(model).double(), ids)[0]


@torch.no_grad()
def greedy(model, ids, steps=GREEDY_STEPS):
    """Greedy continuation, every step from scratch (no cache): (ids, margins)"""
    ids, margins = list(ids), []
    for _ in range(steps):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        top = torch.topk(logits, 2).values
        margins.append(float(top[0] - top[1]))
        ids.append(int(torch.argmax(logits)))
    return ids[-steps:], margins


@torch.no_grad()
def greedy_cached(model, ids, steps=GREEDY_STEPS):
    """The same with transformers' own key/value cache, one token at a time."""
    out = model(input_ids=torch.tensor([ids]), use_cache=True)
    new = []
    for _ in range(steps):
        new.append(int(torch.argmax(out.logits[0, -1])))
        out = model(
            input_ids=torch.tensor([[new[-1]]]),
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    return new


def write_f32(folder, name, array):
    """Raw little-endian float32; returns the description for the JSON."""
    array = np.ascontiguousarray(
        array.numpy() if isinstance(array, torch.Tensor) else array, dtype="<f4"
    )
    assert np.isfinite(array).all(), name
    array.tofile(os.path.join(folder, name))
    return {"file": name, "shape": list(array.shape)}


def run_case(model, ids, folder, stem, hidden=True):
    """Everything that is recorded of one model (adapters already in its weights)."""
    logits, final = forward(model, ids)
    noise = float((logits.double() - float64_logits(model, ids)).abs().max())
    new, margins = greedy(model, ids)
    case = {"logits": write_f32(folder, stem + ".logits.f32", logits)}
    if hidden:
        case["hidden"] = write_f32(folder, stem + ".hidden.f32", final)
    case.update(
        {
            "max_abs_logit": round(float(logits.abs().max()), 4),
            "float32_noise": float("%.2e" % noise),
            "greedy": new,
            "greedy_min_margin": float("%.4g" % min(margins)),
            "greedy_distinct": len(set(new)),
        }
    )
    return case




def dump_json(path, value):
    """JSON with one line per list of numbers, as a diff wants it."""
    holes = {}

    def walk(v):
        if isinstance(v, dict):
            return {k: walk(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            if all(isinstance(x, (int, float, str)) for x in v):
                key = "@@%d@@" % len(holes)
                holes['"%s"' % key] = json.dumps(list(v))
                return key
            return [walk(x) for x in v]
        return v

    text = json.dumps(walk(value), indent=2)
    for key, flat in holes.items():
        text = text.replace(key, flat)
    with open(path, "w") as f:
        f.write(text + "\n")
