"""Answers of several models to the same questions, side by side.

    python benchmarks/adaptation/sample_answers.py --models "as it came=smollm2-135m" "adapted, 4 bits=CHECKPOINT"

Each question is put to the model by itself, as `edgequant chat` does it: in llama.cpp, in the form that ships, by the
chat template where the model has one; the likeliest token is taken each time. Questions are the bundled closed-book
ones, which nothing is trained on, spread evenly over the file; `reference` is their answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from edgequant import models  # noqa: E402
from edgequant.disk.leftovers import Scratch  # noqa: E402
from edgequant.evaluation.backends.llama_cpp.server import start_server  # noqa: E402
from edgequant.workflows.chat import answer, files_of, has_template  # noqa: E402

QUESTIONS = ROOT / "platform" / "edgequant" / "corpora" / "disaster" / "closed_book_questions.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="TITLE=MODEL")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=60, help="of an answer, at most")
    options = parser.parse_args()
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    english = [row for row in rows if row["language"] == "en"]
    asked = english[:: max(1, len(english) // options.count)][: options.count]
    said = {}
    for title, model in (named.split("=", 1) for named in options.models):
        said[title] = answers(model, [row["question"] for row in asked], options.tokens)
    for place, row in enumerate(asked):
        print(f"**{row['question']}**\n\n* reference: {' or '.join(row['answers'])}")
        print("\n".join(f"* {title}: {given[place]}" for title, given in said.items()) + "\n")


def answers(model: str, questions: list[str], tokens: int) -> list[str]:
    """Each answer in one line."""
    with Scratch() as scratch:
        file, lora = files_of(models.check_available(model), Path(scratch))
        server = start_server(file, lora=lora, threads=None)
        conversation = has_template(file)
        wanted: dict[str, Any] = {"show": str, "max_tokens": tokens, "temperature": 0.0}
        return [
            " ".join(
                answer(server, [{"role": "user", "content": each}] if conversation else [], each, **wanted).split()
            )
            for each in questions
        ]


if __name__ == "__main__":
    main()
