"""The quality table of one model: PTQ and QAT of each scheme, and peers', over seeds, against the model as it came.

    python benchmarks/qat_on_models.py --model smollm2-135m --data_dir DATA --keep CELLS --seeds 0 1 2 --jobs 4
    python benchmarks/qat_on_models.py --model FOLDER --data_dir DATA --keep CELLS --rate_grid w4-g64   # of auto's rate
    python benchmarks/qat_on_models.py --model tiny --data_dir DATA --keep CELLS --quick         # minutes on a CPU

Nothing is tuned to a model: rates are `auto`, text, tokens and settings are the same for all. Every cell (variant,
scheme, seed) is kept in --keep as soon as it is made; the same command goes on with those that are missing, and prints
the table of those that are there. Perplexity: the whole WikiText-2 test split, windows of 2,048 tokens.

baseline     the model as it came
ptq          by the best method for the scheme
qat          ours, which learns from the model as it came; `delivered`: the better of the two on held-out text
qat-plain    ours, which learns from the text alone
peers        their PTQ: bitsandbytes, hqq, torchao, auto_round, llmcompressor, each if it is installed
torchao-qat  torchao's QAT of the linears, in our loop: same text, tokens, teacher, search for the rate, best state
qat-as-torchao   ours beside it: same linears, from the same start, the weights as they came

Seconds of QAT are without those of PTQ, whose finished blocks it starts from, and with the search for the rate.
Needs torch, transformers and accelerate alone; no MLflow, Ray or datasets.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from qat_quality.cells import PEERS, VARIANTS, Store, planned  # noqa: E402
from qat_quality.stand_in import record_nothing  # noqa: E402
from qat_quality.tables import grid_table, quality_table, reasons, rows_of  # noqa: E402
from qat_quality.workers import Workers, serve  # noqa: E402

SCHEMES = ["w8a8-static", "w4a8-g32+emb4", "w4-g64", "w3-g64"]
TASKS = ["perplexity", "domain_perplexity", "boolq", "squad"]
QUICK = {"steps": 4, "batch": 2, "sequence": 64, "calibration": 4, "limit": 20, "windows": 1, "peer_steps": 2}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/, boolq/ and squad/")
    parser.add_argument("--keep", type=Path, required=True, help="folder of the cells: small JSON files")
    parser.add_argument("--work", type=Path, help="folder of checkpoints, for cells cut short (default: KEEP/work)")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--peer_seeds", nargs="+", type=int, help="of the peers' PTQ (default: the first seed)")
    parser.add_argument("--rate_grid", metavar="SCHEME", help="QAT at multiples of auto's rate instead of the table")
    # What follows is the same for every model.
    parser.add_argument("--dataset", default="wikitext-2:0.1,disaster:0.02,self-generated:0.88")
    parser.add_argument("--guard", default="self-generated")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--steps", type=int, help="instead of --epochs")
    parser.add_argument("--max_tokens", type=int, help="most tokens that --epochs may draw")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a forward pass")
    parser.add_argument("--accumulate", type=int, default=2, help="forward passes per optimiser step")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--calibration", type=int, default=128, help="sequences; peers are calibrated on the same")
    parser.add_argument("--ptq_method", default="auto", help="of our PTQ and QAT's start")
    parser.add_argument("--peer_steps", type=int, default=200, help="of AutoRound")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--limit", type=int, help="BoolQ and SQuAD questions of each (default: all)")
    parser.add_argument("--windows", type=int, help="perplexity windows (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quick", action="store_true", help=", ".join(f"{name} {n}" for name, n in QUICK.items()))
    # How it runs; the cells are the same.
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, on the visible GPUs in turn")
    parser.add_argument("--stop_after", type=float, metavar="SECONDS", help="stop and print what there is")
    parser.add_argument("--keep_checkpoints", action="store_true", help="leave what QAT made in the work folder")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    cells, store = planned(options), Store(options.keep)
    if options.worker is not None:
        work_for(options, store)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are stopped and the table is printed
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker"]
    workers = Workers(store, command, options.jobs, options.keep / "logs", options.stop_after)
    try:
        workers.make(cells)
    finally:
        rows = rows_of(cells, store)
        print(f"\n{options.model}, {options.dataset}\n")
        print(grid_table(rows) if options.rate_grid else f"{quality_table(rows)}\n\n{reasons(rows)}", flush=True)


def work_for(options: argparse.Namespace, store: Store) -> None:
    """Make the cells that the parent names on the standard input."""
    record_nothing()
    from qat_quality.comparison import Comparison

    cells = planned(options)
    work = (options.work or options.keep / "work").resolve() / cells[0].run
    serve(sys.stdin, cells, store, Comparison(options, store, work).make)


if __name__ == "__main__":
    main()
