"""What fixed activation ranges lose by the text that they are taken from: human text, the vocabulary, the model's own.

    python benchmarks/rounding/static_ranges.py --model smollm2-135m --data_dir DATA --keep losses.json

Calibration texts, joined by `+`: `text`, WikiText-2's validation split; `own`, what the model writes itself;
`vocabulary`, every token that text can have, in random order, none twice. Of each --sequences rows, or half of them
(`own/2`), or twice as many (`2own`). Losses against the model as it came, on the WikiText-2 test split (windows of
2,048), 64 other sequences of its own and the bundled training documents. Needs torch, transformers and accelerate
alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from qat_quality.stand_in import record_nothing  # noqa: E402

GUARD = 64  # sequences that losses are measured on
TEXTS = ["text", "text+vocabulary", "text+own", "text/2+own/2", "text/2+own/2+vocabulary/2", "2text+2own"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/")
    parser.add_argument("--keep", type=Path, required=True, help="JSON file of the losses, in nats")
    parser.add_argument("--methods", nargs="+", default=["smoothquant+mse_clip"])
    parser.add_argument("--texts", nargs="+", default=TEXTS)
    parser.add_argument("--sequences", type=int, default=128, help="of each text")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--windows", type=int, help="of the test split, evenly (default: all)")
    parser.add_argument("--scheme", default="w8a8-static")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    record_nothing()
    from edgequant import models
    from edgequant.quantization.layers.convert import set_phase
    from edgequant.quantization.ptq.quantize import choose_integers
    from edgequant.quantization.scheme import parse_scheme

    options = arguments()
    loaded = models.load(models.check_available(options.model), dtype="float32", device=options.device)
    texts, judges = texts_of(loaded, options), judges_of(loaded, options)
    before = {name: loss(loaded.model, rows) for name, rows in judges.items()}
    print({name: round(math.exp(nats), 2) for name, nats in before.items()}, "as it came", flush=True)
    found: dict[str, dict[str, float]] = {}
    for method in options.methods:
        for name in options.texts:
            model = copy.deepcopy(loaded.model)
            calibration = [rows.to(model.device) for rows in drawn(name, texts, options.sequences)]
            choose_integers(model, parse_scheme(options.scheme), calibration, method)
            set_phase(model, quantize_inputs=True, observe=False)
            losses = {judge: loss(model, rows) - before[judge] for judge, rows in judges.items()}
            found[f"{method}, {name}"] = losses
            options.keep.write_text(json.dumps(found, indent=1))
            said = ", ".join(f"{judge} {100 * math.expm1(nats):+.2f} %" for judge, nats in losses.items())
            print(f"{method}, {name}: {said}", flush=True)


def texts_of(loaded: Any, options: argparse.Namespace) -> dict[str, Tensor]:
    """Sequences [n, length] of each kind, in random order."""
    from edgequant.corpora.packing import pack
    from edgequant.workflows.steps.data import training_texts
    from edgequant.workflows.steps.generated_text import generated_sequences, text_tokens

    tokens = text_tokens(loaded.tokenizer, loaded.model)
    rows = len(tokens) // options.length
    own = generated_sequences(loaded.model, loaded.tokenizer, 2 * options.sequences, options.length, seed=7)
    return {
        "text": shuffled(pack(training_texts("wikitext-2", options.data_dir), loaded.tokenizer, options.length)),
        "vocabulary": shuffled(tokens)[: rows * options.length].view(rows, options.length),
        "own": own,
    }


def judges_of(loaded: Any, options: argparse.Namespace) -> dict[str, Tensor]:
    """Sequences that losses are measured on."""
    from edgequant.corpora.packing import pack
    from edgequant.workflows.steps.data import training_texts
    from edgequant.workflows.steps.generated_text import generated_sequences

    raw = (Path(options.data_dir) / "wikitext-2" / "wiki.test.raw").read_text(encoding="utf-8")
    test = loaded.tokenizer(raw, return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"][0]
    windows = test[: len(test) // 2048 * 2048].view(-1, 2048)
    every = max(1, len(windows) // (options.windows or len(windows)))
    return {
        "WikiText-2": windows[::every][: options.windows],
        "own": generated_sequences(loaded.model, loaded.tokenizer, GUARD, options.length, seed=8),
        "domain": pack(training_texts("disaster", options.data_dir), loaded.tokenizer, options.length)[:GUARD],
    }


def shuffled(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def drawn(name: str, texts: dict[str, Tensor], count: int) -> list[Tensor]:
    """`text/2+own/2`: half of `count` sequences of either; `2own`: twice as many."""
    found = []
    for part in name.split("+"):
        kind, half, _ = part.lstrip("2").partition("/2")
        wanted = count * (2 if part.startswith("2") else 1) // (2 if half else 1)
        found.append(texts[kind][:wanted])
    return found


@torch.no_grad()
def loss(model: Any, sequences: Tensor) -> float:
    """Mean next-token loss, nats, over token ids [n, length]."""
    nats, tokens = 0.0, 0
    for rows in sequences.split(max(1, 2048 // sequences.shape[1])):
        rows = rows.to(model.device)
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
        tokens += rows[:, 1:].numel()
    return nats / tokens


if __name__ == "__main__":
    main()
