"""What `gptq` should believe of correlations between inputs, and what its outputs should aim at.

Fixed shares beside the one that it finds by itself; with `--asymmetric true false` the floating-point model's outputs
on its own inputs beside those on the inputs that are there.

    python benchmarks/rounding/gptq_shrinkage.py --data_dir DATA   # SmolLM2, about half an hour on 2 cores
    python benchmarks/rounding/gptq_shrinkage.py --model FOLDER --data_dir DATA --datasets disaster
    python benchmarks/rounding/gptq_shrinkage.py --model tiny --data_dir DATA --sequences 4 --length 128    # a minute

Every row is one PTQ on one calibration text; its columns are the rise of perplexity, in per cent of the model as it
came, on texts that it was not calibrated on and the one that it was. Windows are the same throughout.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "platform"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgequant import models  # noqa: E402
from edgequant.corpora.benchmarks import load_squad, read_split  # noqa: E402
from edgequant.corpora.disaster.corpus import bundled_documents  # noqa: E402
from edgequant.corpora.packing import pack  # noqa: E402
from edgequant.quantization.ptq.quantize import quantize  # noqa: E402
from edgequant.quantization.ptq.settings import PtqSettings  # noqa: E402
from edgequant.quantization.scheme import parse_scheme  # noqa: E402
from edgequant.workflows.steps.data import training_texts  # noqa: E402

FOUND = "found"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/ and squad/")
    parser.add_argument("--schemes", nargs="+", default=["q4_0+embq8_0", "q4_0+embq4_0", "w3-g64"])
    parser.add_argument("--datasets", nargs="+", default=["disaster", "wikitext-2"], help="calibration texts")
    parser.add_argument("--shares", nargs="+", default=[FOUND, "0", "0.25", "0.5", "0.75", "1"])
    parser.add_argument("--asymmetric", nargs="+", default=["true"], choices=["true", "false"])
    parser.add_argument("--sequences", type=int, default=8, help="of calibration")
    parser.add_argument("--length", type=int, default=512, help="tokens of each sequence")
    parser.add_argument("--windows", type=int, default=8, help="of each text that is scored")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    loaded = models.load(options.model, dtype="float32", device="cpu")
    texts = scored_texts(options, loaded.tokenizer)
    before = {name: perplexity(loaded.model, rows) for name, rows in texts.items()}
    print(f"{options.model} as it came: " + ", ".join(f"{name} {value:.2f}" for name, value in before.items()))
    columns = ["scheme", "calibrated on", "share not believed", "asymmetric", *texts, "s"]
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for scheme in options.schemes:
        for dataset in options.datasets:
            calibration = drawn(options, training_texts(dataset, options.data_dir), loaded.tokenizer)
            for share, asymmetric in itertools.product(options.shares, options.asymmetric):
                started = time.perf_counter()
                model = copy.deepcopy(loaded.model)
                settings = PtqSettings(
                    shrinkage=None if share == FOUND else float(share), asymmetric_calibration=asymmetric == "true"
                )
                quantize(model, parse_scheme(scheme), calibration=[calibration], method="gptq", settings=settings)
                taken = time.perf_counter() - started
                rises = [f"{100 * (perplexity(model, rows) / before[name] - 1):.2f} %" for name, rows in texts.items()]
                cells = [scheme, dataset, share, asymmetric, *rises, f"{taken:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


def drawn(options: argparse.Namespace, texts: Any, tokenizer: Any) -> Tensor:
    """Calibration sequences [sequences, length], drawn by the seed."""
    rows = pack(texts, tokenizer, options.length)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed))
    return rows[order[: options.sequences]]


def scored_texts(options: argparse.Namespace, tokenizer: Any) -> dict[str, Tensor]:
    """Windows [windows, length], spread evenly over each text, none of which calibration draws from."""
    passages = dict.fromkeys(row["context"] for row in load_squad("validation", options.data_dir))
    texts = {
        "WikiText-2 test": ["".join(read_split("wikitext2", "test", options.data_dir).rows)],
        "SQuAD passages": list(passages),
        "disaster": [document.text for document in bundled_documents("test") if document.language == "en"],
    }
    packed = {name: pack(part, tokenizer, options.length) for name, part in texts.items()}
    return {name: rows[:: max(1, len(rows) // options.windows)][: options.windows] for name, rows in packed.items()}


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    """exp of the mean next-token loss over windows [windows, length]."""
    nats = 0.0
    for row in rows:
        with torch.autocast("cpu", torch.bfloat16, enabled=models.pick_dtype("auto", "cpu") == "bfloat16"):
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
        nats += float(nn.functional.cross_entropy(logits.float(), row[1:]))
    return math.exp(nats / len(rows))


if __name__ == "__main__":
    main()
