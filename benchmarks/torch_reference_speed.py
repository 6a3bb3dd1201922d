"""Torch as a reference beside its unquantised self: CPU time of prefill and of a decoded token, and what is in memory.

    OMP_NUM_THREADS=1 python benchmarks/torch_reference_speed.py                 # SmolLM2, all schemes, 20 minutes
    OMP_NUM_THREADS=1 python benchmarks/torch_reference_speed.py --schemes w4-g32 q8_0 --dtypes float32 --rounds 3

One thread, batch 1. Both models have the same dtype and take turns, prompt by prompt; a ratio is the median of those of
the rounds, so that what else the machine does strikes both. Rounded to nearest: the figures depend on no weight.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any, NamedTuple

import torch

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.backends.footprint import resident_bytes
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare
from edgequant.quantization.scheme import parse_scheme

SCHEMES = ["w4-g32", "w4-g64", "w4-g128", "w3-g64", "w4a8-g32", "w4a8-g32+emb4", "w8", "w8a8", "w8a8-static"]
SCHEMES += ["q8_0", "q4_0", "q4_1", "q4_0+embq4_0"]


class Timing(NamedTuple):
    """Milliseconds of CPU time: of the prompt, and of a token in the median."""

    prefill: float
    decode: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of it")
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = models.load(options.model, dtype="float32", device="cpu").model.eval()
    sides = {dtype: copy.deepcopy(base).to(getattr(torch, dtype)) for dtype in options.dtypes}
    prompt = torch.randint(0, base.config.vocab_size, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    print("| scheme | dtype | decode ms | unquantised | ratio | prefill ms | unquantised | ratio | MB in memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for scheme in options.schemes:
        try:
            quantized = quantized_by(scheme, base, prompt)
        except UserError as error:
            print(f"| `{scheme}` | not for {options.model}: {error} |")
            continue
        for dtype, side in sides.items():
            model = copy.deepcopy(quantized).to(getattr(torch, dtype))
            ours, theirs = in_turns(model, side, prompt, options)
            print(row(scheme, dtype, ours, theirs, model), flush=True)


def quantized_by(scheme: str, base: Any, prompt: torch.Tensor) -> Any:
    """A copy of the model, rounded to nearest."""
    model = copy.deepcopy(base)
    prepare(model, parse_scheme(scheme))
    if has_static_ranges(model):
        calibrate(model, [prompt])
    convert(model)
    return model


def in_turns(ours: Any, theirs: Any, prompt: torch.Tensor, options: Any) -> tuple[list[Timing], list[Timing]]:
    """Each side's timings, after one round to warm up."""
    rounds = [
        tuple(timing(model, prompt, options.new_tokens) for model in (ours, theirs)) for _ in range(1 + options.rounds)
    ]
    of_ours, of_theirs = zip(*rounds[1:], strict=True)
    return list(of_ours), list(of_theirs)


@torch.inference_mode()
def timing(model: Any, prompt: torch.Tensor, new_tokens: int) -> Timing:
    """Greedy decoding through a growing cache."""
    start = time.process_time_ns()
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    prefill, steps = time.process_time_ns() - start, []
    for _ in range(new_tokens):
        token, past = output.logits[:, -1:].argmax(-1), output.past_key_values
        start = time.process_time_ns()
        output = model(input_ids=token, past_key_values=past, use_cache=True)
        steps.append(time.process_time_ns() - start)
    return Timing(prefill / 1e6, statistics.median(steps) / 1e6)


def row(scheme: str, dtype: str, ours: list[Timing], theirs: list[Timing], quantized: Any) -> str:
    """A row of the table."""
    cells = []
    for part in ("decode", "prefill"):
        times, others = ([getattr(one, part) for one in side] for side in (ours, theirs))
        ratio = statistics.median(one / other for one, other in zip(times, others, strict=True))
        cells += [f"{statistics.median(times):.1f}", f"{statistics.median(others):.1f}", f"{ratio:.2f}"]
    return f"| `{scheme}` | {dtype} | {' | '.join(cells)} | {resident_bytes(quantized) / 1e6:.0f} |"


if __name__ == "__main__":
    main()
