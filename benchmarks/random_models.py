"""Language models that nobody tuned to: drawn sizes, trained on real text for some minutes, as transformers folders.

    python benchmarks/random_models.py --data_dir DATA --output FOLDER --seeds 0 1 --minutes 4              # one GPU
    python benchmarks/random_models.py --data_dir DATA --output FOLDER --seeds 0 --minutes 0.3 --quick      # on a CPU

Family (Llama or Qwen2), widths, depth, heads, key-value heads, tied or own head, size of the first weights and the
vocabulary of a byte-level BPE learned from the text are drawn by the seed. Text: WikiText-2's train split where DATA
holds it, else its validation split, and the bundled disaster documents, or what --dataset names. The state that
predicts held-out text best is kept. `qat_on_models.py --model FOLDER/random-0` takes the result. Needs torch and
transformers alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from edgequant.corpora.packing import pack  # noqa: E402
from edgequant.models.devices import pick_device, pick_dtype  # noqa: E402
from edgequant.models.folders import save_folder  # noqa: E402
from edgequant.training.distillation import next_token_loss  # noqa: E402
from edgequant.training.watch import Watch, copied_state, restore_state  # noqa: E402
from edgequant.workflows.steps.data import training_texts  # noqa: E402

CONTEXT = 2048
HELD_OUT = 0.05  # of the rows
LOOKS = 12
WARMUP = 0.05  # of the time
RATE = 3e-3  # at a width of 256; smaller by the width's ratio (Yang et al. 2022, arXiv 2203.03466)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dataset", nargs="+", default=["wikitext-2", "disaster"], help="texts by name or path")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--minutes", type=float, default=4.0, help="of each model")
    parser.add_argument("--tokenizer", help="folder of a tokenizer (default: a byte-level BPE of a drawn size)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="small sizes and batches")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    texts = [text for name in options.dataset for text in training_texts(name, options.data_dir)]
    for seed in options.seeds:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        tokenizer = tokenizer_for(texts, draw, options)
        model = drawn_model(draw, tokenizer, quick=options.quick)
        rows = pack(texts, tokenizer, options.sequence)
        perplexities = trained(model, rows, seed, options)
        folder = options.output / f"random-{seed}"
        save_folder(model.float(), tokenizer, folder)
        print(f"{folder}: {described(model, len(tokenizer))}, held-out perplexity {perplexities}", flush=True)


def tokenizer_for(texts: list[str], draw: random.Random, options: argparse.Namespace) -> Any:
    """The given one, or a byte-level BPE that is learned from the text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    size = draw.choice([1024, 2048, 4096, 8192])  # drawn in any case, so that the rest of the model is the same
    if options.tokenizer:
        return AutoTokenizer.from_pretrained(options.tokenizer)
    special = ["<|endoftext|>", "<|padding|>"]
    learned: Any = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, vocab_size=size, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, eos_token=special[0], pad_token=special[1], model_max_length=CONTEXT
    )


def drawn_model(draw: random.Random, tokenizer: Any, *, quick: bool) -> Any:
    """A model of drawn sizes with its first weights; widths are multiples of 64, so that groups of 64 fit."""
    from transformers import AutoConfig, AutoModelForCausalLM

    head = draw.choice([32, 64])
    width = 64 * (draw.randint(2, 3) if quick else draw.randint(4, 10))
    heads = width // head
    shared = draw.choice([share for share in (1, 2, 3, 4) if heads % share == 0])
    config = AutoConfig.for_model(
        draw.choice(["llama", "qwen2"]),
        hidden_size=width,
        intermediate_size=64 * round(width * draw.uniform(2.0, 4.0) / 64),
        num_hidden_layers=2 if quick else draw.randint(4, 12),
        num_attention_heads=heads,
        num_key_value_heads=heads // shared,
        vocab_size=64 * math.ceil(len(tokenizer) / 64),
        tie_word_embeddings=draw.random() < 0.5,
        initializer_range=0.01 * 5 ** draw.random(),
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def trained(model: Any, rows: Tensor, seed: int, options: argparse.Namespace) -> str:
    """Train in place for the minutes, at a rate that falls to 0 with them; says the held-out perplexities.

    The model ends in the state of the best look at held-out text.
    """
    device = pick_device(options.device)
    model.to(device).train()
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    held = max(1, round(HELD_OUT * len(rows)))
    watch = Watch(texts={"held-out": shuffled[:held]}, batch_size=8)
    given, peak = shuffled[held:], RATE * 256 / model.config.hidden_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.1, betas=(0.9, 0.95))
    half = pick_dtype("auto", str(device)) == "bfloat16"
    started, looks, best, step = time.monotonic(), [watch.losses(model)["held-out"]], copied_state(model), 0
    while (share := (time.monotonic() - started) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, share / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
        batch = given[torch.randint(len(given), (options.batch if not options.quick else 4,))].to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            loss = next_token_loss(model(input_ids=batch, use_cache=False).logits, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if share * LOOKS >= len(looks):
            looks.append(watch.losses(model)["held-out"])
            best = copied_state(model) if looks[-1] <= min(looks) else best
    restore_state(model, best)
    model.eval()
    print(f"{step} steps, held-out losses {json.dumps([round(loss, 3) for loss in looks])}", flush=True)
    return f"{math.exp(looks[0]):.0f} at first, {math.exp(min(looks)):.1f} at best"


def described(model: Any, vocabulary: int) -> str:
    config, parameters = model.config, sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{config.model_type} of {parameters / 1e6:.1f} M parameters: width {config.hidden_size}, "
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, {config.num_key_value_heads} of keys, "
        f"{vocabulary} tokens, {'tied' if config.tie_word_embeddings else 'own'} head"
    )


if __name__ == "__main__":
    main()
