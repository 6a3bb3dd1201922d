"""What ships, beside what a llama.cpp user gets free: files of one model, same tokens, one table.

    python -m venv V && V/bin/pip install cyllama==0.2.18      # llama.cpp's own quantiser; x86-64, for this alone
    python benchmarks/edge_vs_llama_cpp.py --data_dir DATA --keep ROWS --quantizer V/bin/python \\
        --checkpoint QAT0 --checkpoint QAT1 --checkpoint QAT2 --threads 1
    python benchmarks/edge_vs_llama_cpp.py --model tiny --data_dir DATA --keep ROWS --quick            # a minute

F16             the model as it came
Q4_0 ... Q8_0   llama.cpp's own quantiser (rows left out without --quantizer); its Q4_0 and Q4_K_M keep head and
                embedding in more bits, and K-quants fall back where they do not divide a matrix's width
Q4_0 + imatrix  the same with the importance matrix of the calibration text, which is what PTQ is calibrated on
PTQ             `--method` as each of `--schemes`, the file that keeps its integers: llama.cpp's own layout with the
                embedding in four bits, and with it in eight, which is where its Q4_0 has it in this model
ONNX            `--method` as `--onnx_scheme`, in ONNX Runtime
QAT             checkpoints of `edgequant qat`, one for each --checkpoint (its seed is its place), their integers kept
QAT-ONNX        the same in ONNX Runtime

Files lie in ROWS/files, finished rows in ROWS as JSON: the same command goes on. Rows of several seeds show their mean
with its 95 % interval (Student's t), others the interval of the measure itself. A second table says of every file how
much worse it is than F16 and than Q4_0 with the importance matrix, paired item by item. Times and memory are those of
fresh processes, `--threads` each; alternate them with other rows by `--repetitions` where the machine does other work.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from edge_rows.files import OURS, THEIRS, Files, planned  # noqa: E402
from edge_rows.table import edge_table, paired_table  # noqa: E402
from peers.row_store import Job, RowStore  # noqa: E402
from qat_quality.stand_in import record_nothing  # noqa: E402

QUICK = {"limit": 20, "windows": 1, "window": 256, "sequences": 4, "sequence_length": 128, "repetitions": 1}
KEY = ("model", "method", "device", "dataset", "sequences", "sequence_length", "windows", "window", "limit", "threads")
ROWS_FORMAT = 2  # of rows on disk: since 2 with what each figure is made of, item by item


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/, boolq/ and squad/")
    parser.add_argument("--keep", type=Path, required=True, help="folder of files and finished rows")
    parser.add_argument("--quantizer", type=Path, help="Python of an environment with cyllama")
    parser.add_argument("--checkpoint", action="append", default=[], help="of edgequant qat; once for each seed")
    parser.add_argument("--rows", nargs="+", default=[*THEIRS, *OURS], choices=[*THEIRS, *OURS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="draw the calibration text")
    parser.add_argument("--schemes", nargs="+", default=["q4_0+embq4_0", "q4_0+embq8_0"], help="of PTQ")
    parser.add_argument("--onnx_scheme", default="w4a8-g32+emb4")
    parser.add_argument("--method", default="auto", help="of PTQ")
    parser.add_argument("--dataset", default="disaster", help="calibration text, of the importance matrix as well")
    parser.add_argument("--device", default="cpu", help="where PTQ and the importance matrix are made")
    parser.add_argument("--sequences", type=int, default=10)
    parser.add_argument("--sequence_length", type=int, default=512)
    parser.add_argument("--windows", type=int, help="WikiText-2 windows, spread evenly (default: all)")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--limit", type=int, default=200, help="BoolQ and SQuAD questions of each; 0 takes all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5, help="of each time, after one that is not counted")
    parser.add_argument("--quick", action="store_true", help=", ".join(f"{name} {n}" for name, n in QUICK.items()))
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    record_nothing()
    keys = planned(options)
    store = RowStore(str(options.keep), {"format": ROWS_FORMAT} | {name: getattr(options, name) for name in KEY})
    files = Files(options)
    jobs = {key: Job(f"seed{key.seed}", files.name(key)) for key in keys}
    for key, job in jobs.items():
        if not store.has(job):
            from edge_rows.measure import measured_row

            store.save(job, [measured_row(key, files.file(key), options)])
    print(
        f"\n{options.model}; calibration: {options.sequences} x {options.sequence_length} tokens of {options.dataset}\n"
    )
    found = [(key, row) for key, job in jobs.items() for row in store.rows(job)]
    print(edge_table(found), flush=True)
    print(f"\n{paired_table(found)}", flush=True)


if __name__ == "__main__":
    main()
