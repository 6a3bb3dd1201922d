"""Adapting what is quantised, in which order, for several models, on text that is not scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from situation import Place, Situation
from small_models import checkpoint_of

from edgequant import models
from edgequant.models.adapters.quantized_base import record_base
from edgequant.quantization.adapters.integer_model import adapt_integers
from edgequant.training.lora import attach
from edgequant.training.settings import LoraSettings

SHORT = ("--training.steps", "2", "--training.batch_size", "1", "--training.sequence_length", "32")
QUICK = ("--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "20", "--evaluation.window", "128")
FINETUNE = ("finetune", *SHORT, *QUICK, "--device", "cpu")


def checkpoint(place: Place) -> None:
    """`tiny` in w4a8-g32+emb4 as rounded/."""
    checkpoint_of(models.load("tiny", dtype="float32", device="cpu"), "w4a8-g32+emb4", place.folder / "rounded")


def adapter(place: Place) -> None:
    """LoRA beside the integers of rounded/."""
    checkpoint(place)
    folder, base = place.folder / "adapter", place.folder / "rounded"
    folder.mkdir()
    model = models.load(str(base), dtype="float32", device="cpu").model
    adapted = attach(
        adapt_integers(model, rank=0, alpha=1.0, targets="").model, LoraSettings(rank=2), made_from=str(base)
    )
    adapted.save_pretrained(folder, save_embedding_layers=False)
    record_base(folder, "w4a8-g32+emb4", base)


def of_checkpoint(*arguments: str, workflow: tuple[str, ...] = FINETUNE) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        checkpoint(place)
        return place.edgequant(*workflow, "--model", "rounded", *arguments)

    return run


def within(place: Place) -> str:
    said = of_checkpoint("--output", "made")(place)
    sizes = [(place.folder / name / "model.safetensors").stat().st_size for name in ("rounded", "made/merged")]
    assert sizes[0] == sizes[1]
    return said


def over_changed_integers(place: Place) -> str:
    adapter(place)
    shutil.rmtree(place.folder / "rounded")
    checkpoint_of(models.load("tiny", dtype="float32", device="cpu"), "w4-g64", place.folder / "rounded")
    return place.edgequant("evaluate", "--model", "adapter", *QUICK)


def adapter_as(format: str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        adapter(place)
        return place.edgequant("export", "--model", "adapter", "--format", format, "--check", "false")

    return run


def without_a_test_split(place: Place) -> str:
    (place.folder / "texts").mkdir()
    return place.edgequant("evaluate", "--model", "tiny", "--dataset", "texts", *QUICK)


def leaked_questions(place: Place) -> str:
    lines = (place.data() / "boolq" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:40]]
    text = "\n".join(f"{row['question']}? {'yes' if row['answer'] else 'no'}" for row in rows)
    (place.folder / "answers.md").write_text(text)
    measured = ("--evaluation.tasks", "[boolq]", "--evaluation.limit", "2", "--data_dir", str(place.data()))
    return place.edgequant("finetune", "--model", "tiny", "--dataset", "answers.md", *SHORT, *measured)


def instructions(*lines: str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        (place.folder / "rows.jsonl").write_text("\n".join(lines))
        return place.edgequant("finetune", "--model", "tiny", "--dataset", "rows.jsonl", *SHORT)

    return run


def refused(given: str, command: str, line: str, run: Callable[[Place], str]) -> Situation:
    return Situation(given, command, "refused", line, run)


def tiny(*arguments: str) -> Callable[[Place], str]:
    return lambda place: place.edgequant(*arguments)


SITUATIONS = [
    Situation(
        "a checkpoint to adapt", "finetune --model CHECKPOINT", "read as meant",
        "next  edgequant export --model made/merged", within,
    ),
    refused(
        "less than no forgetting", "qat --adapt true --qat.max_forgetting -1",
        "edgequant qat: qat.max_forgetting must be 0 or more, or null for no limit, got -1.0",
        tiny("qat", "--model", "tiny", "--adapt", "true", "--qat.max_forgetting", "-1"),
    ),
    refused(
        "a checkpoint to adapt over bitsandbytes' weights", "finetune --model CHECKPOINT --base bnb-nf4",
        "edgequant finetune: base must be auto for 'tiny', whose weights are integers already (w4a8-g32+emb4), got "
        "bnb-nf4; ...",
        of_checkpoint("--base", "bnb-nf4"),
    ),
    refused(
        "adapters apart, to be registered", "finetune --apart true --register true",
        "edgequant finetune: apart must be false, got true: adapters that stay apart are no model to register; ...",
        of_checkpoint("--apart", "true", "--register", "true"),
    ),
    refused(
        "adapters apart from a floating-point model", "finetune --model tiny --apart true",
        "edgequant finetune: apart must be false for 'tiny' in floating point, ..., got true; leave it out",
        tiny(*FINETUNE, "--model", "tiny", "--apart", "true"),
    ),
    refused(
        "dropout where adapters have no input", "finetune --model CHECKPOINT --lora.dropout 0.1",
        "edgequant finetune: lora.dropout must be 0 where adapters end in integers, got 0.1: ...",
        of_checkpoint("--lora.dropout", "0.1"),
    ),
    refused(
        "a LoftQ start of a floating-point model", "finetune --model tiny --lora.loftq_from tiny",
        "edgequant finetune: lora.loftq_from must be left out for 'tiny' in floating point, ...",
        tiny(*FINETUNE, "--model", "tiny", "--lora.loftq_from", "tiny"),
    ),
    refused(
        "a negative rank", "finetune --lora.rank -1",
        "edgequant finetune: lora.rank must be 0 (no adapters) or more, such as 8 or 16, got -1",
        tiny(*FINETUNE, "--model", "tiny", "--lora.rank", "-1"),
    ),
    refused(
        "an adapter over integers that are other ones now", "evaluate --model ADAPTER",
        "... was trained over other integers than 'rounded' holds now; ...",
        over_changed_integers,
    ),
    refused(
        "an adapter over integers to be merged into a GGUF file", "export --model ADAPTER --format q8_0",
        "edgequant export: format of an adapter over a checkpoint's integers must be lora, got q8_0, ...",
        adapter_as("q8_0"),
    ),
    refused(
        "a model that is no adapter as a LoRA file", "export --model tiny --format lora",
        "edgequant export: model for format lora must be a folder with an adapter, got 'tiny'; ...",
        tiny("export", "--model", "tiny", "--format", "lora"),
    ),
    refused(
        "a folder without a test split to evaluate on", "evaluate --dataset FOLDER",
        "edgequant evaluate: dataset must be a data set on disk with a test split, ..., got 'texts'; ...",
        without_a_test_split,
    ),
    Situation(
        "forty BoolQ questions with their answers as a training text", "finetune --dataset FILE", "ended",
        "edgequant finetune: training text repeats questions of boolq/validation: ...; train on another split ...",
        leaked_questions,
    ),
    refused(
        "a line of instructions without an answer", "finetune --dataset FILE.jsonl",
        "edgequant finetune: dataset 'rows.jsonl', line 2: must have instruction and answer, got instruction; ...",
        instructions('{"instruction": "Who?", "answer": "I."}', '{"instruction": "Why?"}'),
    ),
    refused(
        "instructions with an answer that is a number", "finetune --dataset FILE.jsonl",
        "edgequant finetune: dataset 'rows.jsonl', line 1, answer: must be text, got 15",
        instructions('{"instruction": "How many litres?", "answer": 15}'),
    ),
    refused(
        "bundled instructions where text is calibrated on", "ptq --dataset disaster-instructions",
        "edgequant ptq: dataset disaster-instructions is instructions with answers, which finetune alone learns; ...",
        tiny("ptq", "--model", "tiny", "--scheme", "w8", "--dataset", "disaster-instructions"),
    ),
    refused(
        "an order that there is none of", "pipeline --adapt [between]",
        "edgequant pipeline: adapt must be ...between...",
        tiny("pipeline", "--model", "tiny", "--adapt", "[between]"),
    ),
    refused(
        "replayed text without its share", "pipeline --replay wikitext-2",
        "edgequant pipeline: replay must be one text and its share, such as self-generated:0.5, got 'wikitext-2'",
        tiny("pipeline", "--model", "tiny", "--replay", "wikitext-2"),
    ),
    refused(
        "one model twice", "pipeline --models tiny,tiny",
        "edgequant pipeline: models must differ in name, got 'tiny' and 'tiny', both tiny; rename a folder",
        tiny("pipeline", "--models", "tiny,tiny"),
    ),
]  # fmt: skip
