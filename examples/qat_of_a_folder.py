"""QAT of a model folder on a folder of texts, tracked in MLflow, from Python: what `edgequant qat` does.

python examples/qat_of_a_folder.py --model FOLDER --dataset FOLDER_OF_TEXTS    # minutes to hours, by size and steps
python examples/qat_of_a_folder.py --model tiny --dataset disaster --steps 8   # under a minute, on the bundled text
"""

import argparse

import edgequant
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="folder that transformers reads, or a short name")
parser.add_argument("--dataset", required=True, help="folder of .md and .txt files, or a name such as disaster")
parser.add_argument("--scheme", default="w4a8-g32+emb4")
parser.add_argument("--steps", type=int, default=32)
parser.add_argument("--sequence_length", type=int, default=256)
options = parser.parse_args()

# Every option of the command line is a field here: `--training.steps 8` is TrainingSettings(steps=8). Texts that repeat
# what is evaluated on are refused.
result = qat(
    model=options.model,
    dataset=options.dataset,
    scheme=options.scheme,
    adapt=True,  # learn the text; without, QAT only repairs what rounding does to the model as it came
    training=TrainingSettings(
        steps=options.steps, sequence_length=options.sequence_length, learning_rate="auto", distillation_weight=1.0
    ),
    evaluation=EvaluationSettings(tasks=("domain_perplexity",), limit=100, window=512),
    run=RunSettings(experiment="examples", seed=0),
    register=False,  # a registered version is what `edgequant promote` judges; an experiment need not become one
)

# Measured on the bundled test documents of disaster management, whatever was trained on. PTQ alone loses what rounding
# loses; training moves a model by itself, so QAT is compared with the same training followed by PTQ.
perplexity = {row["variant"]: row["domain/perplexity"] for row in result.rows}
print(f"run {result.run_id}")
print(f"PTQ: {perplexity['baseline']:.2f} becomes {perplexity['ptq']:.2f}, perplexity of the bundled test text")
print(f"trained on {options.dataset}, then PTQ: {perplexity['control-ptq']:.2f}; QAT: {perplexity['qat']:.2f}")
delivered = next(row["variant"] for row in result.rows if row["delivered"] == "yes")
print(f"delivered: {delivered}")  # by text that none of them was trained on

# What was delivered is this folder, measured as it is reloaded from disk.
model, tokenizer, source = edgequant.load(result.checkpoint)
prompt = tokenizer("In a flood warning,", return_tensors="pt").to(model.device)
print(f"checkpoint {result.checkpoint}, {result.metrics['size/bits_per_parameter']:.2f} bits per parameter")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))
