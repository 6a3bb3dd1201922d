"""PTQ of one model by our methods and by the peers that are installed: same weights, same calibration text, one table.

    B="python benchmarks/quantization_vs_peers.py --data_dir DATA"
    $B --device cuda                                              # SmolLM2, full WikiText-2 test
    $B --model FOLDER --device cuda --peers none --schemes w4-g64 w3-g64 w2-g64 --processes 4 --output ROWS
    $B --model tiny --quick --device cpu                          # a minute on a CPU

Perplexity: WikiText-2 raw test as one string, windows of 2,048 tokens, in bfloat16 on a GPU. Linears only: embedding
and head stay in floating point on every side. Calibration: `--dataset`, the same token sequences for everyone;
WikiText-2's validation split flatters every calibrated method alike, `--dataset disaster` shows them out of domain.
Peers, each optional: bitsandbytes, torchao, hqq, auto-round, llmcompressor. With `--output FOLDER` every finished row
is a JSON file there, which another call with the same options does not measure again; `--processes N` measures N rows
at a time on one device, those that take longest first: seconds are then those of a shared device. Runs without
network: torch and transformers are enough, with the model's GGUF file in $EDGEQUANT_SMOLLM2_GGUF or installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from peers.auto_round import auto_round_rows  # noqa: E402
from peers.bitsandbytes import bitsandbytes_rows  # noqa: E402
from peers.hqq import hqq_rows  # noqa: E402
from peers.llm_compressor import llmcompressor_rows  # noqa: E402
from peers.ptq_rows import Row, Setting, cast, measured  # noqa: E402
from peers.row_store import Job, RowStore, in_parallel  # noqa: E402
from peers.table import markdown_table  # noqa: E402
from peers.torchao import torchao_rows  # noqa: E402

from edgequant import models  # noqa: E402
from edgequant.corpora.benchmarks import load_wikitext2  # noqa: E402
from edgequant.corpora.packing import pack  # noqa: E402
from edgequant.quantization.ptq.quantize import quantize  # noqa: E402
from edgequant.quantization.ptq.settings import PtqSettings  # noqa: E402
from edgequant.quantization.scheme import parse_scheme  # noqa: E402

WINDOW = 2048
SCHEMES = ["w4-g64", "w3-g64", "w4a8-g32"]
METHODS = [
    *("gptq+block_ap+e2e_qp", "gptq+signround+e2e_qp", "gptq+block_ap", "gptq+signround", "signround"),
    *("gptq+e2e_qp", "awq+gptq", "gptq", "mse_clip", "rtn"),
]
FLOATING = "floating"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), help="'none' for none")
    parser.add_argument("--dataset", default="wikitext-2", help="wikitext-2 (validation), disaster, or a text file")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--sequence_length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200, help="of signround, block_ap and AutoRound, for each block")
    parser.add_argument("--tune_steps", type=int, default=100, help="of e2e_qp")
    parser.add_argument("--ptq", default="{}", help="further PtqSettings as JSON")
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration sequences")
    parser.add_argument("--windows", type=int, default=None, help="test windows, spread evenly (default: all)")
    parser.add_argument("--quick", action="store_true", help="8 windows of 512 tokens, 16 short sequences, 20 steps")
    parser.add_argument("--output", default=None, help="folder for one JSON file per finished row")
    parser.add_argument("--processes", type=int, default=1, help="rows measured at a time; needs --output")
    parser.add_argument("--only", nargs=2, metavar=("SCHEME", "SYSTEM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes > 1 and not options.output:
        parser.error("--processes needs --output, where the processes leave their rows")
    if options.quick:
        options.sequences, options.sequence_length, options.steps, options.tune_steps = 16, 256, 20, 10
    return options


def main() -> None:
    options = arguments()
    jobs = [Job("none", FLOATING)]
    jobs += [Job(scheme, name) for name in options.peers if name != "none" for scheme in options.schemes]
    jobs += [Job(scheme, method) for method in options.methods for scheme in options.schemes]
    store = RowStore(options.output, key_of(options))
    waiting = [job for job in jobs if not store.has(job)]
    if options.processes > 1:
        in_parallel(waiting, options.processes, sys.argv)
    elif waiting:
        setting = prepare(options)
        for job in waiting if options.only is None else [Job(*options.only)]:
            store.save(job, rows_of(job, setting))
    if options.only is None:
        print_table([row for job in jobs for row in store.rows(job)], options)


def rows_of(job: Job, setting: Setting) -> list[Row]:
    if job.system == FLOATING:
        return [measured(Row("floating point", "none", 16.0), setting, lambda: setting.copy())]
    if job.system in PEERS:
        return peer_rows(job.system, job.scheme, setting)
    spec = parse_scheme(job.scheme).weight
    assert spec is not None
    row = Row(f"edgequant {job.system}", job.scheme, spec.bits_per_weight(setting.model.config.hidden_size))
    return [measured(row, setting, lambda: ours(setting, job.scheme, job.system))]


def key_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a row depends on."""
    names = (
        "model",
        "dataset",
        "sequences",
        "sequence_length",
        "steps",
        "tune_steps",
        "seed",
        "windows",
        "quick",
        "ptq",
    )
    return {name: getattr(options, name) for name in names}


def prepare(options: argparse.Namespace) -> Setting:
    model, tokenizer, _ = models.load(options.model, dtype="float32", device=options.device)
    length = min(options.sequence_length, model.config.max_position_embeddings)
    ids = pack(calibration_texts(options), tokenizer, length)
    chosen = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(options.seed))[: options.sequences]]
    test = tokenizer("".join(row or " \n" for row in load_wikitext2("test", options.data_dir)), verbose=False)
    window = 512 if options.quick else min(WINDOW, model.config.max_position_embeddings)
    tokens = torch.tensor(test["input_ids"])
    windows = tokens[: len(tokens) // window * window].view(-1, window)
    wanted = options.windows or (8 if options.quick else len(windows))
    windows = windows[:: max(1, len(windows) // wanted)][:wanted]
    print(f"{len(chosen)} calibration sequences of {length} tokens, {len(windows)} test windows", flush=True)
    return Setting(options, model, tokenizer, chosen, windows)


def calibration_texts(options: argparse.Namespace) -> list[str]:
    if options.dataset == "wikitext-2":
        return ["".join(load_wikitext2("validation", options.data_dir)).replace("<unk>", "")]
    if options.dataset == "disaster":
        from edgequant.corpora.disaster.corpus import bundled_documents

        return [document.text for document in bundled_documents("train") if document.language == "en"]
    return [Path(options.dataset).read_text(encoding="utf-8")]


def ours(setting: Setting, scheme: str, method: str) -> Any:
    model = setting.copy(torch.float32)
    options = setting.options
    values = {"signround_steps": options.steps, "block_ap_steps": options.steps, "tune_steps": options.tune_steps}
    settings = PtqSettings(**(values | json.loads(options.ptq)))
    batches = [setting.calibration.to(setting.device)]
    errors = quantize(model, parse_scheme(scheme), calibration=batches, method=method, settings=settings)
    for row in errors:
        if row["kind"] == "model":
            before, after = row["divergence_before"], row["divergence"]
            print(f"{method} {scheme}: {before:.5f} nats per token from floating point, tuned {after:.5f}", flush=True)
    return cast(model, setting.dtype)


PEERS: dict[str, Callable[[str, Setting], list[Row]]] = {
    "bitsandbytes": bitsandbytes_rows,
    "torchao": torchao_rows,
    "hqq": hqq_rows,
    "auto_round": auto_round_rows,
    "llmcompressor": llmcompressor_rows,
}


def peer_rows(name: str, scheme: str, setting: Setting) -> list[Row]:
    if name == "none":
        return []
    if importlib.util.find_spec(name) is None:
        return [Row(name.replace("_", "-"), scheme, math.nan, note="not installed")]
    try:
        return PEERS[name](scheme, setting)
    except ImportError as error:
        return [Row(name.replace("_", "-"), scheme, math.nan, note=f"cannot be imported: {error}"[:100])]


def print_table(rows: list[Row], options: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{options.model}, calibrated on {options.dataset}, torch {torch.__version__}, {device}\n")
    headings = ["system", "scheme", "bits/weight", "perplexity", "seconds", "peak GB", ""]
    print(markdown_table(headings, map(cells, rows)))


def cells(row: Row) -> list[str]:
    numbers = [f"{row.bits:.2f}", f"{row.perplexity:.2f}", f"{row.seconds:.1f}", f"{row.peak_gb:.2f}"]
    return [row.system, row.scheme, *("-" if number == "nan" else number for number in numbers), row.note]


if __name__ == "__main__":
    main()
