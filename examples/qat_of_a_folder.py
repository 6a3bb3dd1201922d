"""QAT of a model folder on a folder of texts, tracked in MLflow, from Python: what `edgequant qat` does.

python examples/qat_of_a_folder.py --model FOLDER --dataset FOLDER_OF_TEXTS
python examples/qat_of_a_folder.py --model tiny --steps 8          # seconds, on the bundled text
"""

import argparse

from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--dataset", default="disaster")
parser.add_argument("--scheme", default="w4a8-g32+emb4")
parser.add_argument("--steps", type=int, default=32)
options = parser.parse_args()

# Every setting of the command line is a field here: `--training.steps 8` is TrainingSettings(steps=8).
result = qat(
    model=options.model,
    scheme=options.scheme,
    dataset=options.dataset,
    training=TrainingSettings(steps=options.steps, learning_rate=2e-4),
    qat=QatSettings(learnable_scales=False),
    run=RunSettings(experiment="examples", seed=0),
    register=False,
)

# The result: the MLflow run, what was measured on the checkpoint reloaded from disk, and where it lies.
perplexity = {row["variant"]: row["domain/perplexity"] for row in result.rows}
print(f"run {result.run_id}, checkpoint {result.checkpoint}")
print(f"PTQ costs {perplexity['ptq'] - perplexity['baseline']:+.2f} perplexity on held-out text")
print(f"QAT is at {perplexity['qat']:.2f}; the same training and then PTQ is at {perplexity['control-ptq']:.2f}")
