"""Add a benchmark of your own: one `Task`, by which anything that edgequant loads is measured.

python examples/add_a_task.py                  # SmolLM2-135M, a minute on 2 cores
python examples/add_a_task.py --model tiny     # seconds

`add_task` makes it known to this process. As a package it is known to every entry point, by two lines of the package's
pyproject.toml: to `edgequant evaluate --evaluation.tasks '[flood_cloze]'`, the search's objectives, reports, `--help`.

    [project.entry-points."edgequant.tasks"]
    flood_cloze = "my_package.flood_cloze:FLOOD_CLOZE"
"""

import argparse

import edgequant
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.statistics.sampling import draw_questions
from edgequant.evaluation.tasks.registry import add_task
from edgequant.evaluation.tasks.task import DataSet, Evaluation, Metric, Task

# A sentence, how it goes on, and how it does not. Both ends are of like length, so that length decides nothing.
ROWS = [
    {"context": "The river rose above its banks after three days of heavy", "endings": (" rain", " sleep")},
    {"context": "When the water came, the family climbed onto the", "endings": (" roof", " soup")},
    {"context": "Before you drink water from a flooded well, you should", "endings": (" boil it", " paint it")},
    {"context": "The road was under water, so the rescuers came by", "endings": (" boat", " train")},
    {"context": "Families who lost their homes were taken to a", "endings": (" shelter", " casino")},
    {"context": "People in low-lying areas were told to move to higher", "endings": (" ground", " music")},
    {"context": "The dam was in danger of", "endings": (" breaking", " dancing")},
    {"context": "To hold back the water, volunteers filled bags with", "endings": (" sand", " milk")},
    {"context": "After the flood, dirty water spread diseases such as", "endings": (" cholera", " glasses")},
    {"context": "The storm cut the power lines and left the town without", "endings": (" electricity", " furniture")},
    {"context": "The warning was broadcast to all villages by", "endings": (" radio", " bread")},
    {"context": "Even shallow water that moves fast can sweep away a", "endings": (" car", " law")},
]


def score(model, data, settings):
    """Accuracy in per cent: the likelier ending is the model's answer."""
    rows = draw_questions(data["flood_cloze"], "flood_cloze", settings.limit, settings.seed)
    choices = [model.encode_choices([row["context"]], row["endings"])[0] for row in rows]
    likelihoods = [scores for _, scores in sorted(model.log_likelihoods(choices))]  # they come in any order
    items = [
        {"id": row["id"], "context": row["context"], "margin": right - wrong, "correct": float(right > wrong)}
        for row, (right, wrong) in zip(rows, likelihoods, strict=True)
    ]
    accuracy = Bootstrap.of(settings).share("flood_cloze/accuracy", [100 * item["correct"] for item in items])
    return Evaluation.of_items("flood_cloze", items, accuracy)


FLOOD_CLOZE = Task(
    name="flood_cloze",
    score=score,
    data=(DataSet(name="flood_cloze", load=lambda split, data_dir: ROWS if split == "test" else None),),
    protocol="The likelier of two endings of a sentence about floods, 12 sentences; guessing scores 50 %.",
    display={"flood_cloze/accuracy": Metric("flood cloze", "%", "higher")},
)

if __name__ == "__main__":  # so that the entry point above can import this file
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--scheme", default="w4-g32")
    options = parser.parse_args()

    add_task(FLOOD_CLOZE)
    model, tokenizer, source = edgequant.load(options.model, dtype="float32")
    floating = edgequant.evaluate(model, tokenizer, tasks=["flood_cloze"])
    edgequant.quantize(model, options.scheme)
    quantized = edgequant.evaluate(model, tokenizer, tasks=["flood_cloze"])

    print(FLOOD_CLOZE.protocol)
    for name, measured in (("floating point", floating), (options.scheme, quantized)):
        low, high = (measured.metrics[f"flood_cloze/accuracy_ci_{end}"] for end in ("low", "high"))
        print(f"{name:16}{measured.metrics['flood_cloze/accuracy']:.1f} % (95 % interval {low:.1f} to {high:.1f})")

    # Twelve sentences tell little by their accuracy; their margins show what rounding moved.
    before, after = floating.items["flood_cloze"], quantized.items["flood_cloze"]
    moved = max(zip(before, after, strict=True), key=lambda pair: abs(pair[1]["margin"] - pair[0]["margin"]))
    print(f"moved most: {moved[0]['context']!r}, margin {moved[0]['margin']:+.2f} to {moved[1]['margin']:+.2f} nats")
