"""Adapters: only they are trained, merging changes nothing, a wrong target is named."""

from __future__ import annotations

import copy

import pytest
import torch

from edgequant.errors import UserError
from edgequant.training.loop import train
from edgequant.training.lora import attach, merge
from edgequant.training.settings import LoraSettings, TrainingSettings

SETTINGS = TrainingSettings(steps=4, batch_size=2, sequence_length=32, learning_rate=1e-2, precision="float32")


def test_only_adapters_are_trained_and_the_base_stays_bit_for_bit(tiny, sequences, tmp_path):
    base = copy.deepcopy(tiny.model.state_dict())
    adapted = attach(tiny.model, LoraSettings(rank=4, alpha=8), made_from="tiny")
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    train(adapted, sequences, SETTINGS, tmp_path)
    kept = {n.replace("base_model.model.", "").replace(".base_layer", ""): p for n, p in adapted.state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.items())
    assert any(p.abs().max() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)


def test_rank_sets_the_number_of_trained_parameters(tiny):
    adapted = attach(tiny.model, LoraSettings(rank=3, targets="q_proj,v_proj"), made_from="tiny")
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == 2 * 3 * ((128 + 128) + (128 + 64))  # layers, rank, inputs + outputs of query and value


def test_merged_model_computes_what_the_adapted_one_does(tiny, sequences, tmp_path):
    torch.manual_seed(0)
    adapted = attach(tiny.model, LoraSettings(rank=4, alpha=8), made_from="tiny")
    train(adapted, sequences, SETTINGS, tmp_path)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(input_ids=sequences[:2]).logits
        merged = merge(adapted)
        torch.testing.assert_close(merged(input_ids=sequences[:2]).logits, expected, rtol=1e-4, atol=1e-5)
    assert type(merged).__name__ == "Qwen2ForCausalLM"


@pytest.mark.filterwarnings("error:Could not find a config file")  # peft asking the hub about the base
def test_adapters_resume_to_the_same_loss(tiny, sequences, tmp_path):
    settings = TrainingSettings(
        steps=6, batch_size=2, sequence_length=32, learning_rate=1e-4, precision="float32", save_steps=2
    )

    def adapted():
        torch.manual_seed(1)
        return attach(copy.deepcopy(tiny.model), LoraSettings(rank=4), made_from="some-org/some-model")

    def stop(step, _metrics):
        if step == 5:
            raise InterruptedError

    whole = train(adapted(), sequences, settings, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(adapted(), sequences, settings, tmp_path / "cut", on_log=stop)
    seen: list[int] = []
    resumed = train(
        adapted(), sequences, settings, tmp_path / "cut", resume=True, on_log=lambda step, _metrics: seen.append(step)
    )
    assert seen == [5, 6] and resumed.loss == whole.loss


def test_the_head_gets_no_adapter(tiny):
    adapted = attach(tiny.model, LoraSettings(), made_from="tiny")
    assert not [name for name, _ in adapted.named_parameters() if "lm_head" in name and "lora" in name]


def test_unknown_targets_are_refused_with_the_layers_there_are(tiny):
    with pytest.raises(UserError, match=r"lora\.targets 'query' does not fit.*down_proj.*q_proj"):
        attach(tiny.model, LoraSettings(targets="query"), made_from="tiny")


@pytest.mark.parametrize("values", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": " "}])
def test_impossible_adapters_are_refused(values):
    with pytest.raises(UserError, match=rf"lora\.{next(iter(values))}"):
        LoraSettings(**values)
