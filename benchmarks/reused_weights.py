"""QAT with accumulated gradients: tokens/s where a step simulates each weight once, and where every pass does.

    python benchmarks/reused_weights.py                        # SmolLM2, four passes of 1 x 128 tokens a step
    python benchmarks/reused_weights.py --model tiny --steps 2

The two ways take turns, then the same training without the quantiser runs once; the losses have to be equal.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))

from edgequant import models
from edgequant.quantization.layers.convert import prepare, set_phase
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.loop import TrainingResult, train
from edgequant.training.settings import TrainingSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--scheme", default="w4a8-g32+emb4")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    loaded = models.load(options.model, dtype="float32")
    vocabulary = int(loaded.model.config.vocab_size)
    tokens = torch.randint(0, vocabulary, (64, 128), generator=torch.Generator().manual_seed(0))
    settings = TrainingSettings(
        steps=options.steps, batch_size=1, gradient_accumulation=options.accumulation, save_steps=0
    )
    print("| weights simulated | tokens/s | loss |\n|---|---|---|")
    for _ in range(options.rounds):
        for reuse in (False, True):
            result = trained(loaded.model, tokens, settings, options.scheme, reuse)
            print(row("once a step" if reuse else "in every pass", result), flush=True)
    print(row("not at all (control)", trained(loaded.model, tokens, settings, None, False)))


def trained(
    floating: torch.nn.Module, tokens: torch.Tensor, settings: TrainingSettings, scheme: str | None, reuse: bool
) -> TrainingResult:
    model = copy.deepcopy(floating).requires_grad_(True)
    if scheme is not None:
        prepare(model, parse_scheme(scheme))

    def begin_step(_done: int, _steps: int) -> None:
        set_phase(model, quantize_inputs=True, observe=False, reuse_weights=reuse)

    with tempfile.TemporaryDirectory() as folder:
        return train(model, tokens, settings, Path(folder), on_step=begin_step)


def row(name: str, result: TrainingResult) -> str:
    return f"| {name} | {result.tokens_per_second:.1f} | {result.loss:.4f} |"


if __name__ == "__main__":
    main()
