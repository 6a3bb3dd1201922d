"""QAT against its control: the same training without the quantiser, and PTQ of that. One run, one table.

    python benchmarks/qat_vs_control.py --data_dir DATA                      # one GPU, SmolLM2, 3.3 M tokens a run
    python benchmarks/qat_vs_control.py --data_dir DATA --model tiny --steps 20 --sequence 64 --limit 100   # on a CPU
    python benchmarks/qat_vs_control.py --rows seed0.json seed1.json         # the table of several runs' --output

Text: WikiText-2 validation; perplexity: WikiText-2 test, windows of 2,048 tokens; `--tasks` adds BoolQ and SQuAD.
Runs that share a GPU, one for each seed or scheme, share their controls in `--keep FOLDER`, made by a first run with
`--variants control`; each then names its `--variants`, and `--rows` puts all of them beside each other.
tokens/s: the median over the second half of the steps, so that neither warming up nor compiling is in it. torchao's QAT
of the same scheme, in the same loop, stands beside where torchao is installed. Needs torch and transformers alone.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from peers.table import markdown_table  # noqa: E402
from peers.torchao import qat_step, weight_config  # noqa: E402

from edgequant import models  # noqa: E402
from edgequant.corpora.benchmarks import load_boolq, load_squad, load_wikitext2  # noqa: E402
from edgequant.corpora.packing import pack  # noqa: E402
from edgequant.evaluation.settings import EvaluationSettings  # noqa: E402
from edgequant.evaluation.suite import evaluate_model  # noqa: E402
from edgequant.quantization.calibration import CalibrationSettings  # noqa: E402
from edgequant.quantization.layers.convert import calibrate, convert, has_static_ranges, prepare, set_phase  # noqa: E402
from edgequant.quantization.ptq.quantize import quantize  # noqa: E402
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq  # noqa: E402
from edgequant.quantization.scheme import Scheme, parse_scheme  # noqa: E402
from edgequant.training.loop import train  # noqa: E402
from edgequant.training.settings import TrainingSettings  # noqa: E402

COLUMNS = {  # heading of the table: key of a row, digits
    "perplexity": ("wikitext2/perplexity", 3),
    "vs control": ("vs control", 4),
    "recovered": ("recovered", 3),
    "BoolQ": ("boolq/accuracy", 4),
    "SQuAD EM": ("squad/exact_match", 4),
    "SQuAD F1": ("squad/f1", 4),
    "tokens/s": ("tokens/s", 0),
    "peak GB": ("peak GB", 1),
    "seconds": ("seconds", 0),
}
VARIANTS = ["base", "control", "control-ptq", "qat", "torchao"]
OnStep = Callable[[int, int], None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir")
    parser.add_argument("--schemes", nargs="+", default=["w8a8-static", "w4a8-g32", "w4a8-g32+emb4", "w3-g64"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    parser.add_argument("--qat_learning_rate", type=float, help="of our QAT, where it is not the control's")
    parser.add_argument("--distillation", type=float, default=0.0)
    parser.add_argument("--teacher", choices=("base", "control"), default="base")
    parser.add_argument("--start", default="rtn", help="what QAT starts from: rtn, or a PTQ method")
    parser.add_argument("--learnable_scales", action="store_true", help="LSQ+; else scales follow the extremes")
    parser.add_argument("--compile", choices=("auto", "true", "false"), default="auto")
    parser.add_argument("--observer", default="moving_average_minmax")
    parser.add_argument("--tasks", nargs="+", default=["perplexity"], choices=["perplexity", "boolq", "squad"])
    parser.add_argument("--asked", nargs="*", default=["w4a8-g32+emb4"], help="schemes that answer BoolQ and SQuAD too")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, help="torchao: where installed")
    parser.add_argument("--keep", type=Path, help="folder for controls: one that lies there is not trained again")
    parser.add_argument(
        "--limit", type=int, help="questions of each set, and a twentieth as many windows (default: all)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default=None, help="JSON file for the rows, written after each")
    parser.add_argument("--rows", nargs="+", help="print the table of these JSON files instead of running")
    options = parser.parse_args()
    if not options.rows and not options.data_dir:
        parser.error("--data_dir is needed: a folder with wikitext-2/ (and boolq/, squad/ for --tasks)")
    return options


def main() -> None:
    options = arguments()
    if options.rows:
        print_table([row for file in options.rows for row in json.loads(Path(file).read_text())])
        return
    experiment = Experiment(options)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        for row in experiment.rows(seed):
            results.append({"seed": seed, **row})
            print("  ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
            if options.output:
                Path(options.output).write_text(json.dumps(results, indent=1))
    print_table(results)


class Experiment:
    """One model, one text, one budget; a control and every scheme for each seed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.base, self.tokenizer, _ = models.load(options.model, dtype="float32", device=options.device)
        text = "".join(load_wikitext2("validation", options.data_dir)).replace("<unk>", "")
        self.sequences = pack([text], self.tokenizer, options.sequence)
        self.data = evaluation_data(options)
        self.settings = TrainingSettings(
            steps=options.steps,
            batch_size=options.batch,
            sequence_length=options.sequence,
            learning_rate=options.learning_rate,
            compile={"auto": None, "true": True, "false": False}[options.compile],
            save_steps=0,
        )
        self.observing = CalibrationSettings(observer=options.observer)
        self.calibration = list(self.sequences[:64].to(next(self.base.parameters()).device).split(8))

    def rows(self, seed: int) -> Iterator[dict[str, Any]]:
        """The base, its control, and for each scheme PTQ of the control, QAT and the peer's QAT."""
        wanted = self.options.variants
        if "base" in wanted:
            yield {"scheme": "-", "variant": "base", **self.scores(self.base)}
        if wanted == ["base"]:
            return
        control, cost = self.control(seed)
        if "control" in wanted:
            yield {"scheme": "-", "variant": "control", **self.scores(control), **cost}
        for name in self.options.schemes:
            scheme = parse_scheme(name)
            if "control-ptq" in wanted:
                rounded = copy.deepcopy(control)
                quantize(rounded, scheme, calibration=self.calibration, calibration_settings=self.observing)
                yield {"scheme": name, "variant": "control-ptq", **self.scores(rounded, name)}
                del rounded
            if "qat" in wanted:
                made, cost = self.qat(scheme, seed, control)
                yield {"scheme": name, "variant": "qat", **self.scores(made, name), **cost}
                del made
            if "torchao" in wanted and torchao_can(scheme):
                made, cost = self.torchao(scheme, seed)
                yield {"scheme": name, "variant": "torchao", **self.scores(made, name), **cost}
                del made

    def control(self, seed: int) -> tuple[nn.Module, dict[str, float]]:
        """The same training without a quantiser, and what it cost; nothing where it was kept from another run."""
        control = copy.deepcopy(self.base)
        kept = self.options.keep and self.options.keep / f"control-{seed}.safetensors"
        if kept and kept.is_file():
            load_model(control, kept)
            return control, {}
        cost = self.trained(control, self.settings, seed, "control")
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_model(control, str(kept))
        return control, cost

    def qat(self, scheme: Scheme, seed: int, control: nn.Module) -> tuple[nn.Module, dict[str, float]]:
        """Train through the quantiser; the integer model that results and what training cost."""
        options, model = self.options, copy.deepcopy(self.base)
        if options.start == "rtn":
            prepare(model, scheme, observer=options.observer, learnable_scales=options.learnable_scales)
        else:
            prepare_from_ptq(model, scheme, options.start, self.calibration, calibration_settings=self.observing)
        if has_static_ranges(model):
            calibrate(model, self.calibration)

        def phases(done: int, steps: int) -> None:
            set_phase(model, quantize_inputs=done >= 0.1 * steps, observe=done < 0.8 * steps)

        teacher = {"base": self.base, "control": control}[options.teacher] if options.distillation else None
        rate = options.qat_learning_rate or options.learning_rate
        trained = replace(self.settings, learning_rate=rate, distillation_weight=options.distillation)
        cost = self.trained(model, trained, seed, f"qat {scheme.name}", teacher=teacher, on_step=phases)
        set_phase(model, quantize_inputs=True, observe=False)
        convert(model)
        return model, cost

    def torchao(self, scheme: Scheme, seed: int) -> tuple[nn.Module, dict[str, float]]:
        """torchao's QAT of the same bits and groups (symmetric, its default), in our loop."""
        model = copy.deepcopy(self.base)
        qat_step(model, scheme, "prepare")
        cost = self.trained(model, self.settings, seed, f"torchao {scheme.name}")
        qat_step(model, scheme, "convert")
        return model, cost

    def trained(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        seed: int,
        title: str,
        teacher: nn.Module | None = None,
        on_step: OnStep | None = None,
    ) -> dict[str, float]:
        """Train in place: steady tokens/s, seconds in all, peak memory in GB (10^9 bytes)."""
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model.requires_grad_(True)
        started, ends = time.perf_counter(), []
        with tempfile.TemporaryDirectory() as folder:
            train(
                model, self.sequences, settings, Path(folder), teacher=teacher,
                seed=seed, title=title, on_step=on_step, on_log=lambda step, metrics: ends.append(time.perf_counter()),
            )  # fmt: skip
        model.requires_grad_(False)
        model.eval()
        lengths = [after - before for before, after in itertools.pairwise(ends)]
        return {
            "tokens/s": self.settings.tokens_per_step / statistics.median(lengths[len(lengths) // 2 :]),
            "seconds": time.perf_counter() - started,
        } | ({"peak GB": torch.cuda.max_memory_allocated() / 1e9} if on_gpu else {})

    def scores(self, model: nn.Module, scheme: str | None = None) -> dict[str, float]:
        """What `--tasks` names, in the type that the device computes in; questions only where `--asked`."""
        dtype = models.pick_dtype("auto", str(next(self.base.parameters()).device))
        copied = models.cast(copy.deepcopy(model), dtype)
        asked = scheme is None or scheme in self.options.asked
        tasks = tuple(task for task in self.options.tasks if asked or task == "perplexity")
        settings = EvaluationSettings(tasks=tasks, limit=self.options.limit)
        metrics = evaluate_model(copied, self.tokenizer, self.data, settings).metrics
        return {key: metrics[key] for key, _ in COLUMNS.values() if key in metrics}


def evaluation_data(options: argparse.Namespace) -> dict[str, list | None]:
    folder, wanted = options.data_dir, options.tasks
    return {
        "wikitext2": load_wikitext2("test", folder) if "perplexity" in wanted else None,
        "boolq": load_boolq("validation", folder) if "boolq" in wanted else None,
        "squad": load_squad("validation", folder) if "squad" in wanted else None,
    }


def torchao_can(scheme: Scheme) -> bool:
    """Whether torchao is installed and its QAT knows the scheme, which quantises no embedding there."""
    return bool(importlib.util.find_spec("torchao") and scheme.embedding is None and weight_config(scheme))


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with perplexity relative to the same seed's control, and the share of PTQ's loss that was won back."""
    key = "wikitext2/perplexity"
    found = {(row["seed"], row["scheme"], row["variant"]): row[key] for row in rows if key in row}
    made = []
    for row in rows:
        control = found.get((row["seed"], "-", "control"))
        lost = found.get((row["seed"], row["scheme"], "control-ptq"))
        extra = {}
        if control and row["scheme"] != "-":
            extra["vs control"] = row[key] / control - 1
            if lost and lost > control and row["variant"] != "control-ptq":
                extra["recovered"] = (lost - row[key]) / (lost - control)
        made.append(row | extra)
    return made


def print_table(results: list[dict[str, Any]]) -> None:
    """One line a scheme and variant: means over seeds, ± their standard deviation."""
    results = compared(results)
    shown = {heading: spec for heading, spec in COLUMNS.items() if any(spec[0] in row for row in results)}
    lines = []
    for scheme, variant in dict.fromkeys((row["scheme"], row["variant"]) for row in results):
        rows = [row for row in results if (row["scheme"], row["variant"]) == (scheme, variant)]
        cells = [spread([row[key] for row in rows if key in row], digits) for key, digits in shown.values()]
        lines.append([scheme, variant, *cells])
    print(f"\n{len({row['seed'] for row in results})} seeds")
    print(markdown_table(["scheme", "variant", *shown], lines))


def spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else text


if __name__ == "__main__":
    main()
