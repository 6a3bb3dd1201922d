"""What QAT costs beside the same training without the quantiser: tokens/s, peak memory, compilations, time to the end.

    python benchmarks/qat_throughput.py --models FOLDER smollm2-135m            # on a GPU, 8 x 1,024 tokens a step
    python benchmarks/qat_throughput.py --models tiny --steps 12 --batch 2 --sequence 64 --compile true   # on a CPU
    torchrun --nproc_per_node 2 benchmarks/qat_throughput.py --models FOLDER    # the same steps, shared by two GPUs

Text is random tokens: nothing is learned, only measured. tokens/s: the median over the second half of the steps, so
that neither warming up nor compiling is in it; seconds: from the first line of training to its end, with an empty
compiler cache, a trial of one step before it, as `learning_rate: auto` makes several. QAT goes through all its phases
(inputs as they are, quantised, ranges frozen) and is scored on held-out text `--looks` times, which is in the seconds
and not in tokens/s. Where several GPUs are visible and none was launched for, the script starts itself again through
torchrun. Needs torch and transformers alone.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from peers.table import markdown_table  # noqa: E402

from edgequant import models  # noqa: E402
from edgequant.quantization.layers.convert import (  # noqa: E402
    calibrate,
    has_static_ranges,
    learn_ranges,
    prepare,
    set_phase,
)
from edgequant.quantization.scheme import parse_scheme  # noqa: E402
from edgequant.training.compilation import scoring, should_compile  # noqa: E402
from edgequant.training.loop import train  # noqa: E402
from edgequant.training.processes import is_main_process, launched_processes  # noqa: E402
from edgequant.training.settings import TrainingSettings  # noqa: E402

HEADINGS = ["model", "GPUs", "training", "tokens/s", "x control", "peak GB", "x control", "seconds", "compilations"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--schemes", nargs="+", default=["w4a8-g32+emb4"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--looks", type=int, default=4, help="at held-out text, a batch each")
    parser.add_argument("--distillation", type=float, default=0.0, help="share of the loss that is the base model's")
    parser.add_argument("--compile", choices=("auto", "true", "false"), default="true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--alone", action="store_true", help="do not start again on all GPUs")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows = [row for name in options.models for row in measured(options, name)]
    if is_main_process():
        print(markdown_table(HEADINGS, rows), flush=True)
    gpus = torch.cuda.device_count()
    if launched_processes() == 1 and gpus > 1 and not options.alone:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
        subprocess.run([*launcher, __file__, *sys.argv[1:]], check=True)


def measured(options: argparse.Namespace, name: str) -> Iterator[list[str]]:
    """Rows of the table: the control, then QAT of each scheme."""
    base = models.load(name, dtype="float32", device="cpu").model
    device = models.pick_device(options.device)
    control: dict[str, float] | None = None
    for scheme in (None, *options.schemes):
        made = cost(options, base, scheme, device)
        control = control or made
        row = [
            Path(name).name,
            str(launched_processes()),
            scheme or "control",
            f"{made['tokens/s']:,.0f}",
            f"{made['tokens/s'] / control['tokens/s']:.3f}",
            f"{made['GB']:.2f}" if made["GB"] else "",
            f"{made['GB'] / control['GB']:.3f}" if made["GB"] else "",
            f"{made['seconds']:.0f}",
            f"{made['graphs']:.0f}",
        ]
        if is_main_process():
            print("  ".join(row), flush=True)
        yield row


def cost(options: argparse.Namespace, base: nn.Module, scheme: str | None, device: str) -> dict[str, float]:
    """One training of a copy of the model, from an empty compiler cache."""
    fresh()
    vocabulary = int(base.config.vocab_size)  # type: ignore[union-attr, arg-type]
    shape = (options.batch * 16, options.sequence)
    tokens = torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(base).to(device).requires_grad_(True)
    teacher = copy.deepcopy(base).to(device).requires_grad_(False) if options.distillation else None
    if scheme is not None:
        prepare(model, parse_scheme(scheme), learnable_scales=True)  # as `qat` does by default
        if has_static_ranges(model):
            calibrate(model, [tokens[:2].to(device)])
        learn_ranges(model)
    pays = should_compile(torch.device(device), options.steps)
    settings = TrainingSettings(
        steps=options.steps,
        learning_rate=1e-5,
        batch_size=options.batch,
        sequence_length=options.sequence,
        distillation_weight=options.distillation,
        compile=options.compile == "true" or (options.compile == "auto" and pays),
        gradient_checkpointing=options.gradient_checkpointing,
        save_steps=0,
    )
    held_out, begun, lengths = tokens[: options.batch].to(device), time.perf_counter(), Lengths()
    looks = {options.steps * look // (options.looks + 1) for look in range(1, options.looks + 1)}

    def before_step(done: int, steps: int) -> None:
        if scheme is not None:
            set_phase(model, quantize_inputs=True, observe=False)
        if done in looks:
            with scoring(model, models.pick_dtype("auto", device)):
                model(input_ids=held_out, use_cache=False)
        if scheme is not None:
            set_phase(model, quantize_inputs=done >= 0.1 * steps, observe=done < 0.8 * steps)
        lengths.begin()

    with tempfile.TemporaryDirectory() as folder:
        train(model, tokens, replace(settings, steps=1), Path(folder, "trial"), teacher=teacher)
        train(
            model, tokens, settings, Path(folder), teacher=teacher, title=scheme or "control", on_step=before_step,
            on_log=lambda step, metrics: lengths.end(),
        )  # fmt: skip
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return {
        "tokens/s": settings.tokens_per_step / lengths.median() if is_main_process() else float("nan"),
        "seconds": time.perf_counter() - begun,
        "GB": torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else 0.0,
        "graphs": float(torch._dynamo.utils.counters["stats"]["unique_graphs"]),
    }


class Lengths:
    """Seconds of each step, without what is done before it; the loss that is logged waits for the device."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []

    def begin(self) -> None:
        self.begun.append(time.perf_counter())

    def end(self) -> None:
        self.ended.append(time.perf_counter())

    def median(self) -> float:
        seconds = [end - begin for begin, end in zip(self.begun, self.ended, strict=True)]
        return statistics.median(seconds[len(seconds) // 2 :])


def fresh() -> None:
    """No compiled code, in memory or on disk, and no GPU memory of the training before."""
    import torch._dynamo.utils

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
