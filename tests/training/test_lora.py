"""Adapters: only they are trained, merging changes nothing, a wrong target is named."""

from __future__ import annotations

import copy

import pytest
import torch
from random_architectures import KINDS, make

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.backends.footprint import resident_parameter_bytes
from edgequant.models.adapters.quantized_base import bitsandbytes_config
from edgequant.models.digest import weights_digest
from edgequant.models.same_function import merging
from edgequant.models.same_function.comparison import relative_difference
from edgequant.models.same_function.integers_of_bitsandbytes import dequantized
from edgequant.models.same_function.ties import is_tied
from edgequant.models.tiny import tiny_tokenizer
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


@pytest.mark.long
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


@pytest.mark.parametrize("values", [{"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": " "}])
def test_impossible_adapters_are_refused(values):
    with pytest.raises(UserError, match=rf"lora\.{next(iter(values))}"):
        LoraSettings(**values)


# ------------------------------------------------------------------------------------------------------- tied models


def trained(model, **settings):
    """An adapted model whose adapters are far from what they were drawn as."""
    adapted = attach(model, LoraSettings(rank=4, **settings), made_from="model").eval()
    return shaken(adapted)


def shaken(adapted):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (one for one in adapted.parameters() if one.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits[0].float()


@pytest.mark.parametrize("targets", ["lm_head", "embed_tokens", "embed_tokens,lm_head", "q_proj,lm_head", "all-linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_trained_one_also_when_saved_and_reloaded(kind, targets, tmp_path, capsys):
    base = make(kind, tied=True)
    before = logits(base)
    adapted = trained(base, targets=targets)
    expected = logits(adapted)
    assert relative_difference(before, expected) > 0.1
    merged = merge(adapted)
    untied = targets != "all-linear"  # which leaves the head alone
    assert is_tied(merged) != untied
    assert ("embedding and head are one tensor" in capsys.readouterr().out) == untied
    assert relative_difference(expected, logits(merged)) < 1e-5
    merged.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reloaded = models.load(str(tmp_path), dtype="float32", device="cpu").model
    assert reloaded.config.tie_word_embeddings != untied
    assert relative_difference(expected, logits(reloaded)) < 1e-5


@pytest.mark.parametrize(
    ("given", "stays_tied"),
    [
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj", "lm_head"], "use_dora": True}, False),
        ({"trainable_token_indices": [3, 4, 5]}, True),
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
    ],
    ids=str,
)
def test_adapters_that_others_made_merge_into_what_they_compute(given, stays_tied):
    from peft import LoraConfig, get_peft_model

    if unknown := set(given) - set(LoraConfig.__dataclass_fields__):
        pytest.skip(f"this peft does not know {unknown}")
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **({"target_modules": ["q_proj"]} | given))
    adapted = shaken(get_peft_model(make("llama", tied=True), config).eval())
    expected = logits(adapted)
    merged = merge(adapted)
    assert relative_difference(expected, logits(merged)) < 1e-5
    assert is_tied(merged) is bool(merged.config.tie_word_embeddings) is stays_tied


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merging_in_half_precision_is_no_fault(dtype):
    """Weights are rounded anew, which is not told from a change by a bound that suits float32."""
    adapted = trained(models.cast(make("qwen2", tied=True), dtype), targets="q_proj,down_proj,lm_head")
    expected = logits(adapted)
    assert 1e-4 < relative_difference(expected, logits(merge(adapted))) < 0.05


def test_a_merge_that_changes_the_model_is_refused(tiny, monkeypatch):
    """As peft does it without untying: the head's update ends in the embedding too."""
    monkeypatch.setattr(merging, "give_own_weights", lambda model, changed: False)
    with pytest.raises(
        UserError, match=r"^merging the adapter changed what the model computes: .* differ by \d.*unmerged"
    ):
        merge(trained(tiny.model, targets="lm_head"), tiny.tokenizer)


def test_adapters_that_are_no_part_of_weights_are_refused_by_kind(tiny):
    from peft import PromptTuningConfig, get_peft_model

    adapted = get_peft_model(tiny.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match="PROMPT_TUNING adapter cannot be merged"):
        merge(adapted)


def over_integers(base):
    options = {"quantization_config": bitsandbytes_config(base, "float32")}
    return models.load("tiny", dtype="float32", device="cpu", load_options=options)


@pytest.mark.parametrize("base", ["bnb-nf4", "bnb-int8"])
def test_adapters_over_integers_are_merged_into_the_weights_that_these_stand_for(base):
    loaded = over_integers(base)
    adapted = trained(loaded.model, targets="q_proj,down_proj")
    expected = logits(adapted)
    merged = merge(adapted, loaded.tokenizer)
    assert type(merged.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert relative_difference(expected, logits(merged)) < 0.1


@pytest.mark.parametrize("base", ["bnb-nf4", "bnb-int8"])
def test_adapters_over_integers_get_the_same_gradients_after_the_base_was_measured(base):
    """On a CPU with AVX512-BF16 a pass in evaluation mode repacks 4-bit weights for a kernel without gradients."""
    gradients = []
    for measured in (False, True):
        loaded = over_integers(base)
        if measured:
            logits(loaded.model)
        torch.manual_seed(0)
        adapted = shaken(attach(loaded.model, LoraSettings(rank=2), made_from="tiny").train())
        tokens = torch.arange(40)[None]
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append(torch.cat([one.grad.flatten() for one in adapted.parameters() if one.requires_grad]))
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


def test_a_measured_model_of_4_bits_is_dequantised_to_what_it_computes():
    loaded, expected = over_integers("bnb-nf4"), logits(over_integers("bnb-nf4").model)
    logits(loaded.model)
    assert relative_difference(expected, logits(dequantized(loaded.model, loaded.tokenizer))) < 0.05


@pytest.mark.parametrize("base", ["bnb-nf4", "bnb-fp4", "bnb-int8"])
@pytest.mark.parametrize("asks", [weights_digest, resident_parameter_bytes])
def test_a_measured_model_over_integers_can_be_asked_for_its_state_and_computes_as_before(base, asks):
    """As the size and the cache of scores do, behind a pass that packed the weights."""
    model = over_integers(base).model
    expected, size = logits(model), resident_parameter_bytes(model)
    asks(model)
    assert relative_difference(expected, logits(model)) < 0.05
    assert resident_parameter_bytes(model) == size
