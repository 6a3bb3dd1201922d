"""What defines the command line imports nothing heavy, so that bad configuration is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from source_trees import all_sources

HEAVY = (
    *("torch", "transformers", "mlflow", "datasets", "ray"),
    *("peft", "pandas", "sklearn", "accelerate", "bitsandbytes"),
)
PLATFORM = sorted(name for name in all_sources() if name.partition(".")[0] == "edgequant")
HOLD_MODELS = ("qat_experiment", "qat_variants", "held_out", "teacher", "ptq_choice")
TRAINING_STEPS = {f"edgequant.workflows.steps.{name}" for name in HOLD_MODELS} | {
    "edgequant.workflows.adaptation.loftq"
}
LIGHT = [
    *("edgequant", "edgequant.__main__", "edgequant.errors", "edgequant.files", "edgequant.models"),
    *("edgequant.quantization.scheme", "edgequant.quantization.ptq.methods"),
    *("edgequant_tune.workflow", "edgequant_registry.workflow"),
    *(name for name in PLATFORM if name.startswith("edgequant.workflows") and name not in TRAINING_STEPS),
    *(name for name in PLATFORM if name.endswith(".settings")),
]
IMPORT_ALL = """
import importlib, json, sys
loaded = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    loaded[name] = [heavy for heavy in json.loads(sys.argv[2]) if heavy in sys.modules]
print(json.dumps(loaded))
"""


def test_modules_that_define_the_command_line_import_nothing_heavy(environment):
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(LIGHT), json.dumps(HEAVY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: heavy for name, heavy in json.loads(done.stdout).items() if heavy} == {}


@pytest.mark.long
def test_every_module_can_be_imported_while_models_are_built_without_memory(environment):
    """transformers imports our quantiser when it is first asked for, which may be under `torch.device("meta")`."""
    under_meta = f"import torch\nwith torch.device('meta'):\n{textwrap.indent(IMPORT_ALL, '    ')}"
    done = subprocess.run(
        [sys.executable, "-c", under_meta, json.dumps(sorted(all_sources())), "[]"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
