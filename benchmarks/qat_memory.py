"""What QAT keeps in a GPU's memory, choice by choice: GB (10^9 bytes), counted on the meta device.

    python benchmarks/qat_memory.py                                      # the sizes of Qwen2.5-1.5B, 8 x 1,024 tokens
    python benchmarks/qat_memory.py --config FOLDER --batch 2 --sequence 1024       # of a folder with a config.json

Weights, gradients and AdamW's averages are counted exactly on a prepared model; activations and logits are estimated
from its sizes (bfloat16 autocast, residual stream in float32) and are an order of magnitude, not a measurement:
`benchmarks/qat_throughput.py` measures peaks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))

from peers.table import markdown_table
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from edgequant.quantization.layers.convert import prepare
from edgequant.quantization.qat.frozen_weights import freeze_weights
from edgequant.quantization.scheme import parse_scheme
from edgequant.training.distillation import CHUNK

QWEN_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
HEADINGS = ["choice", "base", "control", "student", "gradients", "AdamW", "activations", "logits", "all"]


class Choice(NamedTuple):
    """One way to train: bytes a parameter of what lies beside the student, and how the student trains."""

    name: str
    base: float
    control: float
    frozen: bool = False
    checkpointed: bool = False
    average: int = 4  # bytes of each of AdamW's two averages


CHOICES = [
    Choice("float32 base and control kept", 4, 4),
    Choice("control freed", 4, 0),
    Choice("+ gradient checkpointing", 4, 0, checkpointed=True),
    Choice("+ base in bfloat16", 2, 0, checkpointed=True),
    Choice("+ teacher_top_k, base off the GPU", 0, 0, checkpointed=True),
    Choice("the same with 8-bit AdamW", 0, 0, checkpointed=True, average=1),
    Choice("trainable scales, base in bfloat16, checkpointing", 2, 0, frozen=True, checkpointed=True),
    Choice("trainable scales, base off the GPU, checkpointing", 0, 0, frozen=True, checkpointed=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="folder with a config.json (default: the sizes of Qwen2.5-1.5B)")
    parser.add_argument("--scheme", default="w4a8-g32+emb4")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=1024)
    options = parser.parse_args()
    config = AutoConfig.from_pretrained(options.config) if options.config else Qwen2Config(**QWEN_1_5B)
    tokens = options.batch * options.sequence
    parameters = sum(parameter.numel() for parameter in built(config).parameters())
    print(f"{parameters / 1e9:.2f} billion parameters, {tokens:,} tokens a pass, {options.scheme}\n")
    rows = [row(choice, config, options.scheme, parameters, tokens) for choice in CHOICES]
    print(markdown_table(HEADINGS, rows))


def built(config: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]


def row(choice: Choice, config: Any, scheme: str, parameters: int, tokens: int) -> list[str]:
    student = built(config).requires_grad_(True)
    prepare(student, parse_scheme(scheme))
    if choice.frozen:
        freeze_weights(student)
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*student.parameters(), *student.buffers()))
    trains = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    parts = [
        choice.base * parameters,
        choice.control * parameters,
        held,
        4 * trains,
        2 * choice.average * trains,
        activations(config, tokens, choice.checkpointed),
        (6 if choice.base else 4) * tokens * config.vocab_size + 12 * CHUNK * config.vocab_size,
    ]
    return [choice.name, *(f"{part / 1e9:.1f}" for part in (*parts, sum(parts)))]


def activations(config: Any, tokens: int, checkpointed: bool) -> float:
    """Bytes kept between the passes: of all blocks, or their inputs and one block."""
    hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys = hidden * config.num_key_value_heads // config.num_attention_heads
    norms = 2 * (4 + 2) * hidden  # each one's float32 input, its bfloat16 output, quantised in place of it
    attention = 2 * (2 * hidden + 2 * keys) + 2 * hidden
    block = norms + attention + 2 * 5 * inner
    weights = 2 * sum((2 * hidden * (hidden + keys), 3 * hidden * inner))  # simulated ones, for the backward pass
    if checkpointed:
        return tokens * (4 * hidden * blocks + block) + weights
    return blocks * (tokens * block + weights)


if __name__ == "__main__":
    main()
