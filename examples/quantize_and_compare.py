"""Quantise a model with three PTQ methods, compare them, and save the best one.

python examples/quantize_and_compare.py                  # SmolLM2-135M, some minutes on 2 cores
python examples/quantize_and_compare.py --model tiny     # seconds
"""

import argparse
import copy

import torch

import edgequant
from edgequant.corpora.disaster.corpus import bundled_documents

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--scheme", default="w4-g32")
parser.add_argument("--output", default="outputs/example-quantized")
options = parser.parse_args()

# 1. A floating-point model, and what it knows of held-out disaster-management text.
floating, tokenizer, source = edgequant.load(options.model, dtype="float32")
measured = {"tasks": ("domain_perplexity",), "limit": 100, "window": 512}
results = {"floating point": edgequant.evaluate(floating, tokenizer, **measured).metrics}

# 2. Calibration text: what the methods may look at. Never the text that is evaluated on.
text = "\n\n".join(document.text for document in bundled_documents("train") if document.language == "en")
tokens = tokenizer(text, return_tensors="pt")["input_ids"][0]
calibration = [tokens[: 8 * 256].view(8, 256).to(floating.device)]

# 3. The same scheme by three methods, each on a copy.
models = {}
for method in ("rtn", "gptq", "awq"):
    models[method] = copy.deepcopy(floating)
    edgequant.quantize(models[method], options.scheme, calibration=calibration, method=method)
    results[method] = edgequant.evaluate(models[method], tokenizer, **measured).metrics

# 4. A table, and the best one on disk: bits per parameter count scales and zero points.
for name, metrics in results.items():
    low, high = metrics["domain/perplexity_ci_low"], metrics["domain/perplexity_ci_high"]
    interval = f"{metrics['domain/perplexity']:8.2f} ({low:.2f} to {high:.2f})"
    print(f"{name:15} {interval}  {metrics['size/bits_per_parameter']:6.2f} bits/parameter")
best = min(models, key=lambda method: results[method]["domain/perplexity"])
saved = edgequant.save(models[best], tokenizer, options.output, options.scheme, made_from=source.name)
print(f"{best} saved in {saved.folder}: {saved.weight_bytes / 1e6:.1f} MB")

# 5. It loads in plain transformers code, after `import edgequant`, and generates.
reloaded, tokenizer, _ = edgequant.load(options.output)
prompt = tokenizer("In a flood warning,", return_tensors="pt").to(reloaded.device)
with torch.inference_mode():
    print(tokenizer.decode(reloaded.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))
