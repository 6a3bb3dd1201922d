"""QAT against its control: the same training without the quantiser, and PTQ of that. One run, one table.

    python benchmarks/qat_vs_control.py --data_dir DATA                      # one GPU, SmolLM2, 3.3 M tokens a run
    python benchmarks/qat_vs_control.py --data_dir DATA --model tiny --steps 20 --sequence 64   # a minute on a CPU

Text: WikiText-2 validation; perplexity: WikiText-2 test, windows of 2,048 tokens. Needs torch and transformers alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from edgequant import models  # noqa: E402
from edgequant.corpora.benchmarks import load_wikitext2  # noqa: E402
from edgequant.corpora.packing import pack  # noqa: E402
from edgequant.evaluation.settings import EvaluationSettings  # noqa: E402
from edgequant.evaluation.suite import EvaluationData, evaluate_model  # noqa: E402
from edgequant.quantization import ptq, qat  # noqa: E402
from edgequant.quantization.scheme import parse_scheme  # noqa: E402
from edgequant.training.loop import train  # noqa: E402
from edgequant.training.settings import TrainingSettings  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--schemes", nargs="+", default=["w8a8-static", "w4a8-g32", "w4a8-g32+emb4", "w3-g64"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    parser.add_argument("--distillation", type=float, default=0.0)
    parser.add_argument("--teacher", choices=("base", "control"), default="control")
    parser.add_argument("--fixed_scales", action="store_true", help="scales follow the extremes instead of learning")
    parser.add_argument("--observer", default="ema")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default=None, help="JSON file for the rows")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    base, tokenizer, _ = models.load(options.model, dtype="float32", device=options.device)
    rows = pack(["".join(load_wikitext2("validation", options.data_dir))], tokenizer, options.sequence)
    data = EvaluationData(wikitext2=load_wikitext2("test", options.data_dir))
    settings = TrainingSettings(
        steps=options.steps,
        batch_size=options.batch,
        sequence_length=options.sequence,
        learning_rate=options.learning_rate,
    )
    results = [row for seed in options.seeds for row in compare(base, tokenizer, rows, data, settings, options, seed)]
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=1))
    print_table(results)


def compare(base, tokenizer, rows, data, settings, options, seed):
    """One seed: the base, its control, and for each scheme PTQ of the control and QAT."""

    def perplexity(model) -> float:
        measured = evaluate_model(
            models.cast(copy.deepcopy(model), "bfloat16"), tokenizer, data, EvaluationSettings(measures=("perplexity",))
        )
        return measured.metrics["wikitext2/perplexity"]

    def trained(model, name, teacher=None, on_step=None):
        torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
        model.requires_grad_(True)
        share = options.distillation if teacher is not None else 0.0
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                model, rows, replace(settings, distillation=share), Path(folder),
                teacher=teacher, seed=seed, title=name, on_step=on_step,
            )  # fmt: skip
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else float("nan")
        model.requires_grad_(False)
        model.eval()
        print(f"{name}: {time.perf_counter() - started:.0f} s, loss {result.loss:.3f}", flush=True)
        return {"tokens/s": result.tokens_per_second, "peak GB": peak}

    calibration = list(rows[:64].to(next(base.parameters()).device).split(8))
    yield {"seed": seed, "scheme": "-", "variant": "base", "perplexity": perplexity(base)}
    control = copy.deepcopy(base)
    cost = trained(control, "control")
    yield {"seed": seed, "scheme": "-", "variant": "control", "perplexity": (floating := perplexity(control)), **cost}
    for name in options.schemes:
        scheme = parse_scheme(name)
        rounded = copy.deepcopy(control)
        ptq.quantize(rounded, scheme, calibration=calibration, observer=options.observer)
        yield {"seed": seed, "scheme": name, "variant": "control-ptq", "perplexity": (lost := perplexity(rounded))}
        del rounded
        model = copy.deepcopy(base)
        qat.prepare(model, scheme, observer=options.observer, learned_scales=not options.fixed_scales)
        if qat.has_static_ranges(model):
            qat.calibrate(model, calibration)
        teacher = {"base": base, "control": control}[options.teacher] if options.distillation else None

        def phases(done: int, steps: int, model=model) -> None:
            qat.set_phase(model, quantize_inputs=done >= 0.1 * steps, observe=done < 0.8 * steps)

        cost = trained(model, f"qat {name}", teacher, phases)
        qat.set_phase(model, quantize_inputs=True, observe=False)
        qat.convert(model)
        reached = perplexity(model)
        recovered = (lost - reached) / (lost - floating) if lost > floating else float("nan")
        row = {"seed": seed, "scheme": name, "variant": "qat", "perplexity": reached, "recovered": recovered}
        yield {**row, "vs control": reached / floating - 1, **cost}
        del model


def print_table(results: list[dict]) -> None:
    keys = list(dict.fromkeys((row["scheme"], row["variant"]) for row in results))
    print(
        f"\n{'scheme':16} {'variant':12} {'perplexity':>16} {'vs control':>10} {'recovered':>16} "
        f"{'tokens/s':>9} {'peak GB':>8}"
    )
    for scheme, variant in keys:
        rows = [row for row in results if (row["scheme"], row["variant"]) == (scheme, variant)]
        cells = [spread([row[key] for row in rows if key in row]) for key in ("perplexity", "vs control", "recovered")]
        cost = [
            spread([row[key] for row in rows if key in row], 0 if key == "tokens/s" else 1, False)
            for key in ("tokens/s", "peak GB")
        ]
        print(f"{scheme:16} {variant:12} {cells[0]:>16} {cells[1]:>10} {cells[2]:>16} {cost[0]:>9} {cost[1]:>8}")


def spread(values: list[float], digits: int = 3, with_range: bool = True) -> str:
    if not values:
        return "-"
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ±{statistics.stdev(values):.{digits}f}" if with_range and len(values) > 1 else text


if __name__ == "__main__":
    main()
