"""Quantise a model with three PTQ methods, compare them, and save the best one.

python examples/quantize_and_compare.py                  # SmolLM2-135M, some minutes on 2 cores
python examples/quantize_and_compare.py --model tiny     # seconds
"""

import argparse
import copy

import torch

import edgequant
from edgequant.corpora.disaster.corpus import bundled_documents
from edgequant.corpora.packing import pack

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--scheme", default="w4-g32")
parser.add_argument("--output", default="outputs/example-quantized")
options = parser.parse_args()

# 1. The floating-point model. In float32, since scales are computed in the type of the weights.
floating, tokenizer, source = edgequant.load(options.model, dtype="float32")

# 2. Calibration: 8 rows of 256 tokens that the methods look at. Never the text that is evaluated on: each split has
#    its own documents.
train = [document.text for document in bundled_documents("train") if document.language == "en"]
calibration = [pack(train, tokenizer, 256)[:8].to(floating.device)]

# 3. The same scheme by three methods, each on a copy, since quantisation works in place.
models = {"floating point": floating}
for method in ("rtn", "gptq", "awq"):
    models[method] = copy.deepcopy(floating)
    edgequant.quantize(models[method], options.scheme, calibration=calibration, method=method)

# 4. All of them on the test split. Bits per parameter count everything: scales, zero points, and the embeddings that a
#    scheme without +emb leaves in floating point.
print(f"{'':16}perplexity (95 % interval)   bits per parameter")
for name, model in models.items():
    metrics = edgequant.evaluate(model, tokenizer, tasks=["domain_perplexity"], limit=100, window=512).metrics
    low, high = metrics["domain/perplexity_ci_low"], metrics["domain/perplexity_ci_high"]
    interval = f"{metrics['domain/perplexity']:.2f} ({low:.2f} to {high:.2f})"
    print(f"{name:16}{interval:29}{metrics['size/bits_per_parameter']:.2f}")

# 5. The best one, chosen on the validation split: the winner's number on the text it was chosen by would flatter it.
validation = [document.text for document in bundled_documents("validation") if document.language == "en"]
rows = pack(validation, tokenizer, 256)[:8].to(floating.device)
with torch.inference_mode():
    losses = {name: float(model(input_ids=rows, labels=rows).loss) for name, model in models.items()}
best = min(("rtn", "gptq", "awq"), key=lambda method: losses[method])
saved = edgequant.save(models[best], tokenizer, options.output, made_from=source.name)
print(f"best on validation text: {best}, saved in {saved.folder}, {saved.weight_bytes / 1e6:.2f} MB")

# 6. It loads like any model, also by transformers' AutoModelForCausalLM after `import edgequant`, and generates.
model, tokenizer, source = edgequant.load(options.output)
prompt = tokenizer("In a flood warning,", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))
