"""GPT-2's layers are Conv1D, which no scheme quantises: every command that quantises says so before it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from edgequant.errors import UserError
from edgequant.workflows.pipeline import pipeline
from edgequant.workflows.ptq import ptq
from edgequant.workflows.qat import qat
from edgequant_tune.workflow import tune

SAYS = (
    "model must have layers of nn.Linear, which scheme w8 quantises, got GPT2LMHeadModel with Conv1D in their place; "
    "choose another architecture (Llama, Qwen, Gemma, Phi, ...), or convert its layers to nn.Linear"
)


@pytest.fixture
def gpt2(tiny, tmp_path):
    """Two random layers with `tiny`'s tokenizer, as a folder."""
    ends = {"bos_token_id": None, "eos_token_id": tiny.tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=2, n_positions=512, **ends)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny.tokenizer.save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


@pytest.mark.parametrize("command", [ptq, qat, pipeline, tune])
def test_it_is_refused_before_a_run_exists(command: Callable[..., Any], gpt2, store):
    with pytest.raises(UserError) as refused:
        command(model=gpt2, scheme="w8")
    assert str(refused.value) == SAYS
    assert store.search_runs([each.experiment_id for each in store.search_experiments()]) == []
