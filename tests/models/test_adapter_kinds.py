"""Every kind of adapter that changes weights is merged into what peft computes with it, tokens of its own included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_adapters import logits, save_noisy
from peft import (
    AdaLoraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from refused_twice import load

from edgequant import models
from edgequant.errors import UserError

ROWS = 300  # with the tokens that an adapter brings; tiny has 264


def saved(model: Any, config: Any, folder: Path, base: str = "tiny") -> torch.Tensor:
    """The logits of the model with noise in all that the adapter trains, which is saved."""
    return save_noisy(model, config, folder, base, noise=0.05)


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", **({"target_modules": ["q_proj"]} | settings))


CAUSAL = {"task_type": "CAUSAL_LM"}
KINDS: dict[str, Any] = {
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "adalora": lambda: AdaLoraConfig(target_modules=["q_proj", "up_proj"], total_step=10, **CAUSAL),
    "vera": lambda: VeraConfig(target_modules=["o_proj"], r=4, **CAUSAL),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL),
    "loha": lambda: LoHaConfig(target_modules=["q_proj"], r=4, **CAUSAL),
    "hra": lambda: HRAConfig(target_modules=["q_proj"], r=4, **CAUSAL),
    "norms": lambda: LNTuningConfig(target_modules=["input_layernorm"], **CAUSAL),
    "tokens": lambda: TrainableTokensConfig(token_indices=[1, 2, 3], target_modules=["embed_tokens"], **CAUSAL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_merged_into_what_peft_computes(tiny, tmp_path, kind):
    expected = saved(tiny.model, KINDS[kind](), tmp_path / "adapter")
    found = load(tmp_path / "adapter").model
    assert not hasattr(found, "merge_and_unload")
    torch.testing.assert_close(logits(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [290, 299]},
    ],
    ids=str,
)
def test_tokens_of_an_adapter_get_their_rows_however_they_were_trained(tiny, tmp_path, settings, tied):
    """peft saves grown matrices under other names than others, some of them twice."""
    base = str(tmp_path / "base")
    if not tied:
        tiny.model.config.tie_word_embeddings = False
        tiny.model.lm_head.weight = torch.nn.Parameter(tiny.model.lm_head.weight.detach().clone().mul_(1.1))
    tiny.model.save_pretrained(base)
    tiny.tokenizer.save_pretrained(base)
    torch.manual_seed(1)
    model = models.load(base, dtype="float32", device="cpu").model
    model.resize_token_embeddings(ROWS)
    expected = saved(model, lora(**settings), tmp_path / "adapter", base)
    if not tied and settings == {"target_modules": ["q_proj", "embed_tokens"]}:  # peft saves no head
        with pytest.raises(UserError, match="embedding of 300 rows and no head for them"):
            load(tmp_path / "adapter")
        return
    torch.testing.assert_close(logits(load(tmp_path / "adapter").model), expected, rtol=1e-4, atol=1e-4)


def test_what_a_merged_model_cannot_hold_is_refused(tiny, tmp_path):
    saved(tiny.model, lora(target_modules=["o_proj"], lora_bias=True), tmp_path / "bias")
    with pytest.raises(UserError, match=r"LORA adapter cannot be merged into weights: .* has no bias"):
        models.check_available(str(tmp_path / "bias"))


def test_a_base_that_was_changed_at_random_is_refused(tiny, tmp_path):
    """The fast decomposition draws numbers: the base without what went into the adapter is gone with them."""
    saved(tiny.model, lora(init_lora_weights="pissa_niter_4"), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"pissa_niter_4, .* path_initial_model_for_weight_conversion"):
        models.check_available(str(tmp_path / "adapter"))
