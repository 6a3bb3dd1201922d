"""The figure of docs/domain.md: what LoRA learns of the domain, and what it forgets meanwhile, with and without replay.

    python benchmarks/adaptation/forgetting.py --data_dir DATA --keep LOOKS --output docs/images/forgetting.png

For each share of replayed text (running text that the model wrote itself, before) one fine-tuning as
`edgequant finetune` does it, which follows the earlier predictions there (--words: it learns the words of that text
instead), looked at every few steps: on validation text of the domain, on other text that the model wrote, and on
WikiText-2's validation split where a data folder is given. Drawn is how far each loss lies from what it was before the
first step; every training goes on to its end, whatever the looks say. Looks are kept in --keep, a JSON file for each
share, and the same command draws those that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from edgequant.files import write_atomically  # noqa: E402

COLORS = {"domain": "tab:blue", "own text": "tab:orange", "WikiText-2": "tab:green"}
DECISIVE = ("model", "data_dir", "steps", "batch", "length", "rate", "rows", "looks", "words")
OTHER_SEED = 1_000_003  # no row that is looked at is one that is replayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", help="folder with wikitext-2/")
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--replay", nargs="+", type=float, default=[0.0, 0.2, 0.5], help="shares of the tokens")
    parser.add_argument("--words", action="store_true", help="of replayed text, instead of the predictions on it")
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=5e-4, help="finetune's default")
    parser.add_argument("--rows", type=int, default=16, help="of each text that is looked at")
    parser.add_argument("--looks", type=int, default=8)
    options = parser.parse_args()
    for share in options.replay:
        file = kept(share, options)
        if not file.exists():
            write_atomically(file, json.dumps(looks_of(share, options)))
    draw(options)


def kept(share: float, options: argparse.Namespace) -> Path:
    """The file of a training's looks, named by what decides them."""
    decisive = [getattr(options, name) for name in DECISIVE]
    return options.keep / f"{hashlib.sha256(repr(decisive).encode()).hexdigest()[:8]}-{share:g}.json"


def looks_of(share: float, options: argparse.Namespace) -> list[tuple[int, dict[str, float]]]:
    """Steps and losses, nats per token, of one training."""
    from edgequant import models
    from edgequant.corpora.packing import pack
    from edgequant.training.loop import train
    from edgequant.training.settings import LoraSettings, TrainingSettings
    from edgequant.training.watch import Watch
    from edgequant.workflows.adaptation.selection import anchor_of, text_of
    from edgequant.workflows.adaptation.ways import way_of
    from edgequant.workflows.settings import RunSettings
    from edgequant.workflows.steps.data import evaluation_data, training_texts
    from edgequant.workflows.steps.generated_text import generated_sequences

    run = RunSettings(data_dir=options.data_dir)
    way = way_of(models.resolve(options.model), options.model, "float", LoraSettings(), apart=False, dtype="auto",
                 device="auto")  # fmt: skip
    loaded = way.load()
    settings = TrainingSettings(
        steps=options.steps, batch_size=options.batch, sequence_length=options.length, learning_rate=options.rate,
        eval_steps=max(1, options.steps // options.looks), patience=0, save_steps=0,
    )  # fmt: skip
    data = evaluation_data(("domain_perplexity",), options.data_dir)
    plain = text_of("disaster", loaded, settings, data, run)
    mix = "disaster" if not share else f"disaster:{1 - share:g},self-generated:{share:g}"
    text = plain if not share else text_of(mix, loaded, settings, data, run, beside=False)
    own = generated_sequences(loaded.model, loaded.tokenizer, options.rows, options.length, seed=OTHER_SEED)
    texts = {"domain": plain.validation[: options.rows], "own text": own}
    if options.data_dir:
        rows = pack(training_texts("wikitext-2", options.data_dir), loaded.tokenizer, options.length)
        texts["WikiText-2"] = rows[:: max(1, len(rows) // options.rows)][: options.rows]
    anchor = None if options.words else anchor_of(text, way.before(loaded), loaded)
    adapted = way.prepare(loaded, run.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            adapted, text.training, settings, Path(folder), watch=Watch(texts=texts), seed=run.seed,
            title=f"replay {share:g}", document_end=loaded.tokenizer.eos_token_id, anchor=anchor,
        )  # fmt: skip
    return [(look.step, look.losses) for look in result.looks]


def draw(options: argparse.Namespace) -> None:
    figure, panels = pyplot.subplots(1, len(options.replay), figsize=(4.2 * len(options.replay), 3.4), sharey=True)
    for panel, share in zip(_listed(panels), options.replay, strict=True):
        looks = json.loads(kept(share, options).read_text())
        for name in looks[0][1]:
            change = [losses[name] - looks[0][1][name] for _, losses in looks]
            panel.plot([step for step, _ in looks], change, color=COLORS[name], label=name)
            print(f"replay {share:g}, {name}: {looks[0][1][name]:.4f}, then {change[-1]:+.4f} nats per token")
        panel.axhline(0.0, color="gray", linewidth=0.8)
        panel.set(title=f"{share:.0%} replayed", xlabel="optimizer step")
        panel.legend(fontsize=8)
    _listed(panels)[0].set(ylabel="change of loss (nats per token)")
    figure.tight_layout()
    figure.savefig(options.output, dpi=110)


def _listed(panels: Any) -> list[Any]:
    return list(panels) if hasattr(panels, "__len__") else [panels]


if __name__ == "__main__":
    main()
