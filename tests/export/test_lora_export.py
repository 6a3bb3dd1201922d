"""An adapter over a checkpoint's integers as a LoRA file: llama.cpp computes with both what torch does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_cpp_reader import needs_llama_cpp, read_by_llama_cpp
from peft import LoraConfig, get_peft_model
from small_models import TEXT, checkpoint_of, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.server import start_server
from edgequant.export.gguf.lora import write_lora
from edgequant.export.gguf.write import write_gguf
from edgequant.models.adapters.quantized_base import FILE, record_base
from edgequant.quantization.adapters.integer_model import adapt_integers
from edgequant.workflows.chat import files_of


def adapter_over(base: Path, folder: Path, **config) -> Path:
    """LoRA with numbers in A and B beside a checkpoint's integers, or beside a floating-point model."""
    model = models.load(str(base), dtype="float32", device="cpu").model
    if getattr(model, "is_quantized", False):
        model = adapt_integers(model, rank=0, alpha=1.0, targets="").model
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]} | config
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder.mkdir()
    record_base(folder, "w4-g32", base if (base / "edgequant.json").is_file() else None)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """llama of two layers, whose rotary rows llama.cpp orders otherwise, in w4-g32."""
    folder = tmp_path_factory.mktemp("checkpoint") / "made"
    checkpoint_of(small("llama"), "w4-g32", folder)
    return folder


@needs_llama_cpp
@pytest.mark.parametrize(
    "config", [{}, {"use_rslora": True, "rank_pattern": {"down_proj": 2}}], ids=["plain", "patterns"]
)
def test_llama_cpp_computes_base_and_adapter_as_torch_does(checkpoint, tmp_path, config):
    folder = adapter_over(checkpoint, tmp_path / "adapter", **config)
    base = models.load(str(checkpoint), dtype="float32", device="cpu")
    write_gguf(base, tmp_path / "base.gguf", "q4_1")
    lora = write_lora(folder, tmp_path / "lora.gguf").path
    adapted = models.load(str(folder), dtype="float32", device="cpu").model
    ids = list(base.tokenizer("\n".join(TEXT[:2]))["input_ids"][:60])
    with torch.no_grad():
        without, expected = (
            model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for model in (base.model, adapted)
        )
    found, _ = read_by_llama_cpp(tmp_path / "base.gguf", ids, [len(ids)], len(expected), lora=lora)
    error, change = np.abs(found[0] - expected.numpy()).max(), float((expected - without).abs().max())
    assert change > 0.5 and error < 0.1 * change  # llama.cpp rounds its activations to 8 bits


@needs_llama_cpp
def test_chat_puts_the_adapter_beside_its_checkpoint(checkpoint, tmp_path):
    source = models.check_available(str(adapter_over(checkpoint, tmp_path / "adapter")))
    (tmp_path / "scratch").mkdir()
    file, lora = files_of(source, tmp_path / "scratch")
    adapted, tokenizer, _ = models.load(source, dtype="float32", device="cpu")
    ids = list(tokenizer(TEXT[0])["input_ids"])
    with torch.no_grad():
        expected = int(adapted(torch.tensor([ids])).logits[0, -1].argmax())
    server = start_server(file, lora=lora, threads=1)
    answer = server.handle_completions({"prompt": ids, "n_predict": 1, "temperature": 0.0, "n_probs": 1})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["id"] == expected


def test_an_adapter_over_other_integers_is_refused(checkpoint, tmp_path):
    folder = adapter_over(checkpoint, tmp_path / "adapter")
    recorded = json.loads((folder / FILE).read_text())
    recorded["weights_sha256"] = {name: "0" * 64 for name in recorded["weights_sha256"]}
    (folder / FILE).write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=r"was trained over other integers than .* holds now"):
        models.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("config", "named"), [({"use_dora": True}, "use_dora True"), ({"target_modules": ["embed_tokens"]}, "embed_tokens")]
)
def test_what_a_lora_file_has_no_place_for_is_refused_by_name(tiny_folder, tmp_path, config, named):
    folder = adapter_over(tiny_folder, tmp_path / "adapter", **config)
    with pytest.raises(UserError, match=f"format lora has no place for .*{named}"):
        write_lora(folder, tmp_path / "lora.gguf")
