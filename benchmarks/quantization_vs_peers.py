"""PTQ of one model by our methods and by the peers that are installed: same weights, same calibration text, one table.

    python benchmarks/quantization_vs_peers.py --data_dir DATA --device cuda             # SmolLM2, full WikiText-2 test
    python benchmarks/quantization_vs_peers.py --data_dir DATA --model tiny --quick      # a minute on a CPU

Perplexity: WikiText-2 raw test as one string, windows of 2,048 tokens, in bfloat16 on a GPU. Linears only: embedding
and head stay in floating point on every side. Calibration: `--dataset`, the same token sequences for everyone;
WikiText-2's validation split flatters every calibrated method alike, `--dataset disaster` shows them out of domain.
Peers, each optional: bitsandbytes, torchao, hqq, auto-round, llmcompressor. Runs without network: torch and
transformers are enough, with the model's GGUF file in $EDGEQUANT_SMOLLM2_GGUF or installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from edgequant import models  # noqa: E402
from edgequant.corpora.benchmarks import load_wikitext2  # noqa: E402
from edgequant.corpora.packing import pack  # noqa: E402
from edgequant.quantization.ptq.quantize import quantize  # noqa: E402
from edgequant.quantization.ptq.settings import PtqSettings  # noqa: E402
from edgequant.quantization.scheme import parse_scheme  # noqa: E402

WINDOW = 2048
SCHEMES = ["w4-g64", "w3-g64", "w4a8-g32"]
METHODS = ["rtn", "mse_clip", "gptq", "awq", "awq+gptq", "signround", "gptq+signround", "awq+gptq+signround"]


@dataclass
class Row:
    """One line of the table; `bits` per weight of the linears, scales and zero points included."""

    system: str
    scheme: str
    bits: float
    perplexity: float = math.nan
    seconds: float = math.nan
    peak_gb: float = math.nan
    note: str = ""


@dataclass
class Setting:
    """What every system gets: the floating-point model, its tokenizer, calibration ids [n, length], test windows."""

    options: argparse.Namespace
    model: Any
    tokenizer: Any
    calibration: Tensor
    windows: Tensor

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def copy(self, dtype: torch.dtype | None = None) -> Any:
        return cast(copy.deepcopy(self.model), dtype or self.dtype)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """As a load in that type would: rotary frequencies stay in float32."""
    return models.cast(model, str(dtype).removeprefix("torch."))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data_dir", required=True, help="folder with wikitext-2/")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), help="'none' for none")
    parser.add_argument("--dataset", default="wikitext-2", help="wikitext-2 (validation), disaster, or a text file")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--sequence_length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200, help="of block and of AutoRound")
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration sequences")
    parser.add_argument("--windows", type=int, default=None, help="test windows, spread evenly (default: all)")
    parser.add_argument("--quick", action="store_true", help="8 windows of 512 tokens, 16 short sequences, 20 steps")
    parser.add_argument("--output", default=None, help="JSON file for the rows, written after each")
    options = parser.parse_args()
    if options.quick:
        options.sequences, options.sequence_length, options.steps = 16, 256, 20
    return options


def main() -> None:
    options = arguments()
    setting = prepare(options)
    rows = [measured(Row("floating point", "none", 16.0), setting, lambda: setting.copy())]
    for scheme in options.schemes:
        spec = parse_scheme(scheme).weight
        assert spec is not None
        bits = spec.bits_per_weight(setting.model.config.hidden_size)
        for method in options.methods:
            row = Row(f"edgequant {method}", scheme, bits)
            rows.append(measured(row, setting, lambda s=scheme, m=method: ours(setting, s, m)))
            save(rows, options.output)
        for name in options.peers:
            rows += peer_rows(name, scheme, setting)
            save(rows, options.output)
    print_table(rows, options)


def prepare(options: argparse.Namespace) -> Setting:
    model, tokenizer, _ = models.load(options.model, dtype="float32", device=options.device)
    length = min(options.sequence_length, model.config.max_position_embeddings)
    ids = pack(calibration_texts(options), tokenizer, length)
    chosen = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(options.seed))[: options.sequences]]
    test = tokenizer("".join(row or " \n" for row in load_wikitext2("test", options.data_dir)), verbose=False)
    window = 512 if options.quick else min(WINDOW, model.config.max_position_embeddings)
    tokens = torch.tensor(test["input_ids"])
    windows = tokens[: len(tokens) // window * window].view(-1, window)
    wanted = options.windows or (8 if options.quick else len(windows))
    windows = windows[:: max(1, len(windows) // wanted)][:wanted]
    print(f"{len(chosen)} calibration sequences of {length} tokens, {len(windows)} test windows", flush=True)
    return Setting(options, model, tokenizer, chosen, windows)


def calibration_texts(options: argparse.Namespace) -> list[str]:
    if options.text == "wikitext-2":
        return ["".join(load_wikitext2("validation", options.data_dir)).replace("<unk>", "")]
    if options.text == "disaster":
        from edgequant.corpora.disaster.corpus import bundled_documents

        return [document.text for document in bundled_documents("train") if document.language == "en"]
    return [Path(options.text).read_text(encoding="utf-8")]


def measured(row: Row, setting: Setting, make: Callable[[], Any]) -> Row:
    """Make a model, time that, and score it; a peer that fails leaves its error in the table."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        model = make()
        row.seconds = time.perf_counter() - start
        if setting.device.type == "cuda":
            row.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        row.perplexity = perplexity(model, setting.windows)
    except Exception as error:
        if row.system.startswith("edgequant"):
            raise
        row.note = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    print(
        f"{row.system:32} {row.scheme:10} {row.perplexity:8.3f} {row.seconds:6.1f} s {row.peak_gb:6.2f} GB {row.note}",
        flush=True,
    )
    return row


@torch.no_grad()
def perplexity(model: Any, windows: Tensor) -> float:
    """exp(sum of nats / scored tokens) over windows [n, length]; a window's first token is not scored."""
    device = next(model.parameters()).device
    nats = 0.0
    for window in windows.to(device):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        nats += float(nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(nats / (windows.shape[0] * (windows.shape[1] - 1)))


def ours(setting: Setting, scheme: str, method: str) -> Any:
    model = setting.copy(torch.float32)
    settings = PtqSettings(signround_steps=setting.options.steps)
    batches = [setting.calibration.to(setting.device)]
    quantize(model, parse_scheme(scheme), calibration=batches, method=method, settings=settings)
    return cast(model, setting.dtype)


# ------------------------------------------------------------------------------------------------------------- peers


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear but the head."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")}


def bitsandbytes_rows(scheme: str, setting: Setting) -> list[Row]:
    if scheme != "w4-g64":
        return []
    from transformers import BitsAndBytesConfig

    def load(**options: Any) -> Any:
        config = {"quantization_config": BitsAndBytesConfig(**options)}
        name = str(setting.dtype).removeprefix("torch.")
        return models.load(setting.options.model, dtype=name, device=str(setting.device), load_options=config).model

    def nf4() -> Any:
        return load(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=setting.dtype)

    return [
        measured(Row("bitsandbytes nf4 g64", scheme, 4 + 32 / 64), setting, nf4),
        measured(Row("bitsandbytes int8", "w8a8", 8.0), setting, lambda: load(load_in_8bit=True)),
    ]


def torchao_rows(scheme: str, setting: Setting) -> list[Row]:
    from torchao.quantization import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
        quantize_,
    )

    parsed = parse_scheme(scheme)
    assert parsed.weight is not None and parsed.weight.group_size is not None
    group, dtype = PerGroup(parsed.weight.group_size), getattr(torch, f"int{parsed.weight.bits}")

    def make(mapping: Any) -> Any:
        model = setting.copy()
        if parsed.activation is None:
            config: Any = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=group, mapping_type=mapping)
        else:
            config = Int8DynamicActivationIntxWeightConfig(
                weight_dtype=dtype, weight_granularity=group, weight_mapping_type=mapping
            )
        quantize_(model, config, filter_fn=lambda module, name: name in linears(setting.model))
        return model

    scales = 16 / parsed.weight.group_size
    return [
        measured(
            Row(f"torchao rtn {name}", scheme, parsed.weight.bits + scales + zero), setting, lambda m=mapping: make(m)
        )
        for name, mapping, zero in (
            ("symmetric", MappingType.SYMMETRIC, 0.0),
            ("affine", MappingType.ASYMMETRIC, 8 / parsed.weight.group_size),
        )
    ]


def hqq_rows(scheme: str, setting: Setting) -> list[Row]:
    parsed = parse_scheme(scheme)
    if parsed.activation is not None or parsed.weight is None:
        return []
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    spec = parsed.weight

    def make() -> Any:
        model = setting.copy()
        config = BaseQuantizeConfig(nbits=spec.bits, group_size=spec.group_size, axis=1)
        for linear in linears(model).values():
            given = copy.deepcopy(linear)
            layer = HQQLinear(given, config, compute_dtype=setting.dtype, device=str(setting.device), initialize=True)
            linear.weight.data = layer.dequantize().to(linear.weight)
        return model

    return [measured(Row("hqq", scheme, spec.bits + 32 / (spec.group_size or 1)), setting, make)]


def auto_round_rows(scheme: str, setting: Setting) -> list[Row]:
    parsed = parse_scheme(scheme)
    if parsed.activation is not None or parsed.weight is None:
        return []
    from auto_round import AutoRound

    spec, options = parsed.weight, setting.options

    def make() -> Any:
        model = setting.copy()
        dataset = [
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in setting.calibration
        ]
        rounder = AutoRound(
            model,
            setting.tokenizer,
            bits=spec.bits,
            group_size=spec.group_size,
            sym=False,
            iters=options.steps,
            nsamples=len(setting.calibration),
            seqlen=setting.calibration.shape[1],
            batch_size=8,
            dataset=dataset,
            device_map=str(setting.device),
            enable_torch_compile=setting.device.type == "cuda",
            amp=setting.dtype != torch.float32,
        )
        found = rounder.quantize()
        return cast((found[0] if isinstance(found, tuple) else model).to(setting.device), setting.dtype)

    return [measured(Row("auto-round affine", scheme, spec.bits_per_weight(0)), setting, make)]


def llmcompressor_rows(scheme: str, setting: Setting) -> list[Row]:
    parsed = parse_scheme(scheme)
    if parsed.activation is not None or parsed.weight is None:
        return []
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    spec = parsed.weight

    def make() -> Any:
        weights = {"num_bits": spec.bits, "type": "int", "symmetric": False, "strategy": "group"}
        weights |= {"group_size": spec.group_size, "observer": "mse", "actorder": "static"}
        group = {"group_0": {"targets": ["Linear"], "weights": weights}}
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in setting.calibration.tolist()]
        model = setting.copy()
        with tempfile.TemporaryDirectory() as folder:  # it reads the configuration again from where the model came from
            model.config.save_pretrained(folder)
            model.config.name_or_path = folder
            oneshot(
                model=model,
                processor=setting.tokenizer,
                dataset=Dataset.from_list(rows),
                recipe=[GPTQModifier(config_groups=group, ignore=["lm_head"])],
                max_seq_length=setting.calibration.shape[1],
                num_calibration_samples=len(rows),
                shuffle_calibration_samples=False,
            )
        return model

    return [measured(Row("llm-compressor gptq affine mse", scheme, spec.bits_per_weight(0)), setting, make)]


PEERS: dict[str, Callable[[str, Setting], list[Row]]] = {
    "bitsandbytes": bitsandbytes_rows,
    "torchao": torchao_rows,
    "hqq": hqq_rows,
    "auto_round": auto_round_rows,
    "llmcompressor": llmcompressor_rows,
}


def peer_rows(name: str, scheme: str, setting: Setting) -> list[Row]:
    if name == "none":
        return []
    if importlib.util.find_spec(name) is None:
        return [Row(name.replace("_", "-"), scheme, math.nan, note="not installed")]
    try:
        return PEERS[name](scheme, setting)
    except ImportError as error:
        return [Row(name.replace("_", "-"), scheme, math.nan, note=f"cannot be imported: {error}"[:100])]


def save(rows: list[Row], output: str | None) -> None:
    if output:
        Path(output).write_text(json.dumps([asdict(row) for row in rows], indent=1))


def print_table(rows: list[Row], options: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{options.model}, calibrated on {options.text}, torch {torch.__version__}, {device}\n")
    print("| system | scheme | bits/weight | perplexity | seconds | peak GB | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = [f"{row.bits:.2f}", f"{row.perplexity:.2f}", f"{row.seconds:.1f}", f"{row.peak_gb:.2f}"]
        cells = [row.system, row.scheme, *("-" if number == "nan" else number for number in numbers), row.note]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
