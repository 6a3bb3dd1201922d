"""A model card is one that hubs read: base model, licence with its terms, results, how to load it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from edgequant.models.origin import Origin, origin
from edgequant.reporting.licenses import terms_of
from edgequant.reporting.model_card import (
    FILE,
    NOTICE,
    THIS_FOLDER,
    Card,
    card_of_version,
    located,
    model_card,
    write_card,
)  # fmt: skip

METRICS = {"domain/perplexity": 22.4, "wikitext2/perplexity": 30.123456, "squad/f1": 40.0, "squad/f1_ci_low": 38.0}
QWEN = Origin("Qwen/Qwen2.5-0.5B", "apache-2.0")


def card(**changed: object) -> Card:
    made: dict = {"title": "edgequant-m", "origin": QWEN, "scheme": "w4-g32", "variant": "qat", "metrics": METRICS}
    return Card(**made | changed)


def test_the_front_matter_is_what_hubs_read() -> None:
    data = ModelCard(model_card(card(files=["m-q4_1.gguf", "onnx"]))).data
    assert (data.base_model, data.license, data.library_name) == ("Qwen/Qwen2.5-0.5B", "apache-2.0", "transformers")
    assert data.pipeline_tag == "text-generation" and data.to_dict()["base_model_relation"] == "quantized"
    assert {"edgequant", "quantized", "w4-g32", "gguf", "onnx"} <= set(data.tags)
    listed = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    assert listed == {("WikiText-2", "perplexity"): 30.1235, ("SQuAD 1.1", "f1"): 40.0}


def test_results_stand_beside_the_baselines_with_their_protocol() -> None:
    text = model_card(card(baseline={"domain/perplexity": 21.78}))
    table = [line for line in text.splitlines() if line.startswith("| ")]  # as narrow as a hub's page
    assert table[0] == "|  | baseline | qat w4-g32 |" and "| 21.78 (no interval) | 22.40 (no interval) |" in table[2]
    assert "**domain**" in text and "## Intended use" in text and "## Limits" in text


def test_a_person_reads_how_to_load_it_in_transformers_llama_cpp_and_onnx() -> None:
    text = located(model_card(card(files=["m-q4_1.gguf", "onnx"])), "me/small")
    assert 'AutoModelForCausalLM.from_pretrained("me/small")' in text and THIS_FOLDER not in text
    assert "llama-cli -m m-q4_1.gguf" in text and 'onnxruntime_genai.Model("onnx")' in text
    without = model_card(card(scheme="none", location="models:/m/3"))
    assert 'edgequant.load("models:/m/3")' in without and "export --model models:/m/3 --format onnx" in without
    assert "base_model_relation" not in without


@pytest.mark.parametrize(
    ("made_from", "license", "said"),
    [
        (origin("gemma-3-1b-it"), "gemma", "ai.google.dev/gemma/terms"),
        (Origin("meta-llama/Llama-3.2-1B", "llama3.2"), "llama3.2", "Built with Llama"),
        (Origin("meta-llama/Llama-3.2-1B"), "llama3.2", "Llama 3.2 Community License"),  # gated: no card at hand
        (Origin("meta-llama/Meta-Llama-3-8B"), "llama3", "https://www.llama.com/llama3/license/"),
        (Origin("meta-llama/Llama-2-7b-hf"), "llama2", "Llama 2 Community License"),
        (origin("phi-1.5"), "mit", "licence: mit"),
        (Origin("Qwen/Qwen2.5-3B", "qwen-research"), "other", "https://huggingface.co/Qwen/Qwen2.5-3B"),
        (Origin("some/model"), "unknown", "states no licence"),
        (origin("tiny"), "apache-2.0", "tiny (random weights)"),
    ],
)
def test_the_licences_terms_are_told(made_from: Origin, license: str, said: str) -> None:
    text = model_card(card(origin=made_from))
    data = ModelCard(text).data
    assert data.license == license and said in text.replace("\\", "")
    assert (data.base_model == made_from.base_model) == ("random" not in made_from.base_model)
    assert (data.license_name == "qwen-research") == (license == "other")


def test_a_card_lies_in_the_folder_with_the_notice_that_its_licence_asks_for(tmp_path: Path) -> None:
    write_card(tmp_path, card())
    assert not (tmp_path / NOTICE).exists()
    write_card(tmp_path, card(origin=origin("gemma-3-1b-it")))  # a card of ours is written anew
    assert ModelCard.load(tmp_path / FILE).data.license == "gemma"
    assert (tmp_path / NOTICE).read_text().strip() == terms_of(origin("gemma-3-1b-it")).notice
    (tmp_path / FILE).write_text("# Mine\n")
    write_card(tmp_path, card())
    assert (tmp_path / FILE).read_text() == "# Mine\n"


def test_what_a_card_states_is_read_again_from_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    write_card(tmp_path, card(origin=Origin("Qwen/Qwen2.5-3B", "qwen-research")))
    assert origin(str(tmp_path)) == Origin("Qwen/Qwen2.5-3B", "qwen-research")


def test_names_cannot_write_markup_or_front_matter() -> None:
    text = model_card(card(title='a"\nlicense: mit\n<b>[x](y)', scheme="w4`\n---\n"))
    assert ModelCard(text).data.license == "apache-2.0" and "<b>" not in ModelCard(text).text
    assert "scheme `w4 ---`" in text


def test_a_registered_version_has_a_card_of_its_tags() -> None:
    tags = {"domain/perplexity": "22.4", "edgequant.scheme": "w8", "edgequant.model": "phi-1.5", "note": "1"}
    tags["edgequant.baseline"] = json.dumps({"domain/perplexity": 21.78})
    text = model_card(card_of_version("edgequant-m", "3", tags, "http://host/run"))
    assert "21.78 (no interval)" in text and "22.40" in text and "models:/edgequant-m/3" in text
    assert "http://host/run" in text and ModelCard(text).data.base_model == "microsoft/phi-1_5"
