"""A GGUF file is the model that it was made of, for our reader and for llama.cpp, or it is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gguf_variants import HELD, REFUSED
from llama_cpp_reader import needs_llama_cpp, read_by_llama_cpp
from small_models import TEXT, small

from edgequant import models
from edgequant.errors import UserError
from edgequant.export.gguf.write import write_gguf
from edgequant.models.loading import LoadedModel

NAMES = [f"{name}: {what}" for name, what, _ in HELD]
POSITIONS = (5, 20, 60)


def tokens_of(loaded: LoadedModel) -> list[int]:
    """Longer than the window that the scaled models were trained for."""
    return list(loaded.tokenizer("\n".join(TEXT[:3]))["input_ids"][:120])


def log_probabilities(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "config"), [(name, config) for name, _, config in HELD], ids=NAMES)
def test_our_reader_gives_the_model_back(name: str, config: dict[str, Any], tmp_path) -> None:
    loaded = small(name, **config)
    write_gguf(loaded, tmp_path / "m.gguf", "f32")
    again = models.load(str(tmp_path / "m.gguf"), dtype="float32", device="cpu")
    ids = tokens_of(loaded)
    assert again.tokenizer("\n".join(TEXT[:3]))["input_ids"][:120] == ids
    assert relative(log_probabilities(again.model, ids), log_probabilities(loaded.model, ids)) < 1e-5


@needs_llama_cpp
@pytest.mark.parametrize(("name", "config"), [(name, config) for name, _, config in HELD], ids=NAMES)
def test_llama_cpp_computes_the_same_logits(name: str, config: dict[str, Any], tmp_path) -> None:
    loaded = small(name, **config)
    write_gguf(loaded, tmp_path / "m.gguf", "f32")
    ids = tokens_of(loaded)
    ends = (*POSITIONS, len(ids))
    found, _ = read_by_llama_cpp(tmp_path / "m.gguf", ids, ends, loaded.model.config.vocab_size)
    expected = log_probabilities(loaded.model, ids)[[end - 1 for end in ends]]
    assert relative(found, expected) < 1e-3


@pytest.mark.parametrize(("name", "config", "named"), REFUSED, ids=[f"{name}: {named}" for name, _, named in REFUSED])
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(name, config, named, tmp_path) -> None:
    with pytest.raises(UserError, match=named) as error:
        write_gguf(small(name, **config), tmp_path / "m.gguf", "f32")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi", "gemma3"])
def test_a_file_that_was_loaded_can_be_written_again_and_saved_as_a_folder(name, tmp_path) -> None:
    loaded = small(name, tied=True)
    write_gguf(loaded, tmp_path / "a.gguf", "f32")
    again = models.load(str(tmp_path / "a.gguf"), dtype="float32", device="cpu")
    assert again.model.config.tie_word_embeddings
    again.model.save_pretrained(tmp_path / "folder")
    again.tokenizer.save_pretrained(tmp_path / "folder")
    write_gguf(models.load(str(tmp_path / "folder"), dtype="float32", device="cpu"), tmp_path / "b.gguf", "f32")
    third = models.load(str(tmp_path / "b.gguf"), dtype="float32", device="cpu")
    ids = tokens_of(loaded)
    assert third.tokenizer("\n".join(TEXT[:3]))["input_ids"][:120] == ids
    assert relative(log_probabilities(third.model, ids), log_probabilities(loaded.model, ids)) < 1e-5


@pytest.mark.parametrize(
    ("what", "named"),
    [("Lowercase", "Lowercase"), ("NFKC", "NFKC"), ("StripAccents", "StripAccents")],
)
def test_a_tokenizer_that_changes_characters_first_is_refused(what: str, named: str, tmp_path) -> None:
    from tokenizers import normalizers

    loaded = small("qwen2")
    loaded.tokenizer.backend_tokenizer.normalizer = getattr(normalizers, what)()
    with pytest.raises(UserError, match=f"normalizer for GGUF .*{named}"):
        write_gguf(loaded, tmp_path / "m.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_whose_pieces_llama_cpp_would_join_otherwise_is_refused(tmp_path) -> None:
    """SentencePiece joins whatever gives a token; here the way to a token is left out of the merges."""
    import json

    from tokenizers import Tokenizer

    loaded = small("llama")
    definition = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    definition["model"]["merges"] = definition["model"]["merges"][:5]
    loaded.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(definition))
    with pytest.raises(UserError, match="tokenizer for GGUF must cut a text"):
        write_gguf(loaded, tmp_path / "m.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_parity_of_a_short_context_is_measured_within_it(tmp_path) -> None:
    from edgequant.export.parity import export_parity

    loaded = small("llama", max_position_embeddings=48)
    write_gguf(loaded, tmp_path / "m.gguf", "f32")
    read: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    parity = export_parity(loaded.model, loaded.tokenizer, tmp_path / "m.gguf", "\n".join(TEXT))
    assert read == [48] and parity["parity/max_logit_error"] < 1e-4
