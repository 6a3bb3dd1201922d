"""Tied models, adapters and heads: one tensor with two roles."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from situation import Place, Situation

from edgequant import models
from edgequant.models.same_function.comparison import relative_difference
from edgequant.models.tiny import tiny_model, tiny_tokenizer

TOKENS = torch.arange(60)[None]
QUICK = ("--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "1", "--evaluation.window", "64")
TRAINING = ("--training.steps", "2", "--training.sequence_length", "16", "--training.batch_size", "1")
RATE = ("--training.learning_rate", "0.02")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits[0].float()


def loaded(folder: str | Path) -> torch.Tensor:
    return logits(models.load(str(folder), dtype="float32", device="cpu").model)


def write(folder: Path, model: Any, **says: Any) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | says))


def untied() -> Any:
    """`tiny` with a head of its own."""
    model = tiny_model()
    head = torch.nn.Linear(128, 264, bias=False)
    head.weight = torch.nn.Parameter(tiny_model(seed=1).lm_head.weight.detach().clone())
    model.lm_head, model.config.tie_word_embeddings, model.all_tied_weights_keys = head, False, {}
    return model


def own_head(place: Place) -> str:
    model = untied()
    write(place.folder / "model", model, tie_word_embeddings=True)
    said = place.edgequant("ptq", "--model", "model", "--scheme", "w8+emb8", "--output", "made", *QUICK)
    assert relative_difference(logits(model), loaded("made")) < 0.05
    assert json.loads(Path("made/config.json").read_text())["tie_word_embeddings"] is False
    return said


def own_head_as_gguf(place: Place) -> str:
    model = untied()
    write(place.folder / "model", model, tie_word_embeddings=True)
    said = place.edgequant("export", "--model", "model", "--format", "f32", "--output", "made", "--check", "false")
    assert relative_difference(logits(model), loaded("made/model-f32.gguf")) < 1e-3
    return said


def own_head_finetuned(place: Place) -> str:
    write(place.folder / "model", untied(), tie_word_embeddings=True)
    said = place.edgequant(
        "finetune", "--model", "model", "--lora.targets", "lm_head", "--output", "made", *TRAINING, *RATE, *QUICK
    )
    assert place.status == 0, said
    assert relative_difference(loaded("made/adapter"), loaded("made/merged")) < 1e-4
    return said


def equal_head(place: Place) -> str:
    """Both tensors in the file, as torch.save writes them."""
    model = tiny_model()
    folder = place.folder / "model"
    write(folder, model)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    said = place.edgequant("export", "--model", "model", "--format", "f32", "--output", "made", "--check", "false")
    assert relative_difference(logits(model), loaded("made/model-f32.gguf")) < 1e-3
    return said


def equal_head_said_untied(place: Place) -> str:
    model = untied()
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    write(place.folder / "model", model)
    said = place.edgequant("export", "--model", "model", "--format", "f32", "--output", "made", "--check", "false")
    assert relative_difference(logits(model), loaded("made/model-f32.gguf")) < 1e-3
    return said


def finetuned(targets: str, *, stays_tied: bool) -> Any:
    def run(place: Place) -> str:
        said = place.edgequant(
            "finetune", "--model", "tiny", "--lora.targets", targets, "--output", "made", *TRAINING, *RATE, *QUICK
        )
        assert place.status == 0, said
        assert relative_difference(loaded("made/adapter"), loaded("made/merged")) < 1e-4
        assert relative_difference(loaded("tiny"), loaded("made/merged")) > 1e-3
        assert json.loads(Path("made/merged/config.json").read_text())["tie_word_embeddings"] is stays_tied
        return said

    return run


def adapter_of_others(**given: Any) -> Any:
    """Exports an adapter over `tiny` that peft was told to make, its weights far from what they were drawn as."""

    def run(place: Place) -> str:
        from peft import LoraConfig, get_peft_model

        write(place.folder / "base", tiny_model())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peft, about what is tried here
            adapted = get_peft_model(tiny_model(), LoraConfig(r=4, task_type="CAUSAL_LM", **given)).eval()
        torch.manual_seed(0)
        for parameter in (one for one in adapted.parameters() if one.requires_grad):
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        adapted.peft_config["default"].base_model_name_or_path = str(place.folder / "base")
        adapted.save_pretrained(place.folder / "adapter", save_embedding_layers=False)
        tiny_tokenizer().save_pretrained(place.folder / "adapter")
        expected = logits(adapted)
        said = place.edgequant(
            "export", "--model", "adapter", "--format", "f32", "--output", "made", "--check", "false"
        )
        assert relative_difference(expected, loaded("made/adapter-f32.gguf")) < 1e-3
        return said

    return run


KEPT = (
    "model ...: config.json says tie_word_embeddings true, but the weights hold a head of its own with other values; "
)
KEPT += "it is kept, as an untied model"
UNTIED = (
    "lora.targets '{}': embedding and head are one tensor in this model, and adapters change each alone; the merged "
)
UNTIED += "model is untied, 0.0338 million parameters more"
MERGED = "merging: embedding and head were one tensor and are two now, as their adapters were trained"

OWN = "model folder with a head of its own, config.json says tied"
SITUATIONS = [
    Situation(OWN, "ptq --model FOLDER --scheme w8+emb8", "told", KEPT, own_head),
    Situation(f"{OWN}, to be exported", "export --model FOLDER --format f32", "told", KEPT, own_head_as_gguf),
    Situation(
        f"{OWN}, to be fine-tuned", "finetune --model FOLDER --lora.targets lm_head", "told", KEPT, own_head_finetuned
    ),
    Situation(
        "model folder with head and embedding stored, equal, config.json says tied",
        "export --model FOLDER --format f32",
        "read as meant",
        "export: model as f32",
        equal_head,
    ),
    Situation(
        "model folder with head and embedding equal, config.json says untied",
        "export --model FOLDER --format f32",
        "read as meant",
        "export: model as f32",
        equal_head_said_untied,
    ),
    Situation(
        "LoRA on the head of a tied model",
        "finetune --lora.targets lm_head",
        "told",
        UNTIED.format("lm_head"),
        finetuned("lm_head", stays_tied=False),
    ),
    Situation(
        "LoRA on the embedding of a tied model",
        "finetune --lora.targets embed_tokens,q_proj",
        "told",
        UNTIED.format("embed_tokens,q_proj"),
        finetuned("embed_tokens,q_proj", stays_tied=False),
    ),
    Situation(
        "LoRA on all linears of a tied model, which leaves its head alone",
        "finetune --lora.targets all-linear",
        "read as meant",
        "finetune: tiny, LoRA rank 16",
        finetuned("all-linear", stays_tied=True),
    ),
    Situation(
        "adapter with LoRA on the head of a tied model",
        "export --model ADAPTER --format f32",
        "told",
        MERGED,
        adapter_of_others(target_modules=["q_proj", "lm_head"]),
    ),
    Situation(
        "adapter with a whole head (modules_to_save) over a tied model",
        "export --model ADAPTER --format f32",
        "told",
        MERGED,
        adapter_of_others(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ),
]
