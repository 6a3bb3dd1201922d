"""What replayed text guards while LoRA learns the domain: its share, and whether passages and messages are in it.

    python benchmarks/adaptation/replayed_text.py --model FOLDER --data_dir DATA --keep ROWS --limit 400

One fine-tuning as `edgequant finetune` does it for each of --arms, `SHARE` of the tokens by the model itself, `-plain`
behind it: all of them as without another text beside them. Each is measured at each of --scales of its adapter, beside
the model as it came. Rows are kept in --keep, a JSON file each; the same command prints those that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "platform"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from qat_quality.stand_in import record_nothing  # noqa: E402

from edgequant.files import write_atomically  # noqa: E402

TASKS = ("domain_perplexity", "perplexity", "boolq", "squad", "closed_book")
COLUMNS = {
    "domain/perplexity": "domain", "wikitext2/perplexity": "WikiText-2", "boolq/accuracy": "BoolQ %",
    "squad/exact_match": "SQuAD EM", "squad/f1": "SQuAD F1", "closed_book/f1": "closed-book F1",
}  # fmt: skip
PLAIN = "-plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/, boolq/ and squad/")
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=["0.2-plain", "0.5-plain", "0.2", "0.5"])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 0.5, 0.25], help="of the adapter")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--text", default="disaster")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--steps", type=int, help="instead of --epochs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=5e-4, help="finetune's default")
    parser.add_argument("--limit", type=int, default=400, help="questions of each set")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    record_nothing()
    options.keep.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for arm in options.arms:
            names = [file_of(options, arm, seed, scale) for scale in options.scales]
            if not all(name.exists() for name in names):
                for scale, row in measured(options, arm, seed):
                    write_atomically(file_of(options, arm, seed, scale), json.dumps(row))
                    print(line(f"{arm} x {scale:g}, seed {seed}", row), flush=True)
    print(f"\n| {' | '.join(['text', *COLUMNS.values()])} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for file in sorted(options.keep.glob("*.json")):
        print(line(file.stem, json.loads(file.read_text())))


def file_of(options: argparse.Namespace, arm: str, seed: int, scale: float) -> Path:
    """Of a row."""
    return Path(options.keep / f"{arm} x {scale:g}, seed {seed}.json")


def line(name: str, row: dict[str, float]) -> str:
    """A row of the table."""
    return f"| {name} | {' | '.join(f'{row[metric]:.1f}' for metric in COLUMNS)} |"


def measured(options: argparse.Namespace, arm: str, seed: int) -> Iterator[tuple[float, dict[str, float]]]:
    """Metrics at each scale of the adapter; of the model as it came too, where they are not there."""
    from edgequant import models
    from edgequant.training.loop import train
    from edgequant.training.settings import LoraSettings, TrainingSettings
    from edgequant.workflows.adaptation.selection import anchor_of, text_of, watch_of
    from edgequant.workflows.adaptation.ways import way_of
    from edgequant.workflows.settings import RunSettings
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.steps.text_mix import with_replay

    place: dict[str, Any] = {"dtype": "auto", "device": options.device}
    way = way_of(models.resolve(options.model), options.model, "float", LoraSettings(), apart=False, **place)
    loaded, data = way.load(), evaluation_data(TASKS, options.data_dir)
    base = options.keep / "as it came.json"
    if not base.exists():
        write_atomically(base, json.dumps(scores(way.before(loaded).model, loaded.tokenizer, data, options)))
    amount: dict[str, Any] = {"steps": options.steps} if options.steps else {"epochs": options.epochs}
    settings = TrainingSettings(
        batch_size=options.batch, sequence_length=options.length, learning_rate=options.rate, save_steps=0, **amount
    )
    mix = with_replay(options.text, f"self-generated:{arm.removesuffix(PLAIN)}")
    run = RunSettings(data_dir=options.data_dir, device=options.device, seed=seed)
    text = text_of(mix, loaded, settings, data, run, beside=not arm.endswith(PLAIN))
    settings = settings.for_text(len(text.training), str(loaded.model.device).partition(":")[0])
    anchor = anchor_of(text, way.before(loaded), loaded)
    adapted = way.prepare(loaded, seed)
    with tempfile.TemporaryDirectory() as folder:
        train(
            adapted, text.training, settings, Path(folder), watch=watch_of(text, settings), seed=seed, title=arm,
            document_end=loaded.tokenizer.eos_token_id, anchor=anchor,
        )  # fmt: skip
    adapted.eval()
    layers = [
        (layer, dict(layer.scaling)) for layer in adapted.modules() if isinstance(getattr(layer, "scaling", 0), dict)
    ]
    for scale in options.scales:
        for layer, whole in layers:
            layer.scaling = {name: scale * value for name, value in whole.items()}
        yield scale, scores(adapted, loaded.tokenizer, data, options)


def scores(model: Any, tokenizer: Any, data: Any, options: argparse.Namespace) -> dict[str, float]:
    """A model's metrics: as many documents and windows as `evaluation.limit` draws, all closed-book questions."""
    from edgequant.evaluation.settings import EvaluationSettings
    from edgequant.evaluation.suite import evaluate_model

    found: dict[str, float] = {}
    for tasks, limit in ((TASKS[:-1], options.limit), (TASKS[-1:], None)):
        settings = EvaluationSettings(tasks=tasks, limit=limit, window=2048)
        found |= evaluate_model(model, tokenizer, data, settings).metrics
    return found


if __name__ == "__main__":
    main()
