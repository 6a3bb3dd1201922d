"""How a tokenizer is described to llama.cpp."""

from __future__ import annotations

import json

import gguf
import pytest
from small_models import byte_level_tokenizer, qwen2_tokenizer, sentencepiece_like_tokenizer
from tokenizers import pre_tokenizers

from edgequant.errors import UserError
from edgequant.export.gguf.tokenizer import pre_tokenizer_name, write_tokenizer


def written(tokenizer, rows: int) -> dict:
    writer = gguf.GGUFWriter(None, "llama")
    write_tokenizer(writer, tokenizer, rows)
    return {key.removeprefix("tokenizer.ggml."): value.value for key, value in writer.kv_data[0].items()}


def name_of(tokenizer) -> str:
    return pre_tokenizer_name(json.loads(tokenizer.backend_tokenizer.to_str()))


def test_each_way_of_cutting_text_has_llama_cpps_name() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert name_of(byte_level_tokenizer()) == "gpt-2"
    assert name_of(qwen2_tokenizer()) == "qwen2"
    assert name_of(byte_level_tokenizer(pre_tokenizers.Digits(individual_digits=True), byte_level)) == "smollm"


def test_an_unknown_way_of_cutting_text_is_refused_instead_of_guessed() -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    with pytest.raises(UserError, match="Whitespace"):
        name_of(tokenizer)


def test_the_vocabulary_is_as_long_as_the_embedding() -> None:
    tokenizer = byte_level_tokenizer()
    longer = written(tokenizer, len(tokenizer) + 7)
    assert len(longer["tokens"]) == len(longer["token_type"]) == len(tokenizer) + 7
    assert longer["token_type"][-7:] == [gguf.TokenType.UNUSED] * 7
    assert len(written(tokenizer, len(tokenizer) - 7)["tokens"]) == len(tokenizer) - 7


def test_special_and_user_defined_tokens_are_told_apart() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["    "])
    result = written(tokenizer, len(tokenizer))
    assert result["token_type"][tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    assert result["token_type"][-1] == gguf.TokenType.USER_DEFINED and result["tokens"][-1] == "    "


def test_scores_rank_pieces_as_the_merges_do() -> None:
    tokenizer = sentencepiece_like_tokenizer(adds_space=True)
    result = written(tokenizer, len(tokenizer))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    scores = [result["scores"][tokenizer.convert_tokens_to_ids("".join(pair))] for pair in merges]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)


def test_bytes_and_the_unknown_token_have_their_kinds() -> None:
    tokenizer = sentencepiece_like_tokenizer(adds_space=True)
    result = written(tokenizer, len(tokenizer))
    assert result["token_type"][tokenizer.convert_tokens_to_ids("<0x0A>")] == gguf.TokenType.BYTE
    assert result["token_type"][tokenizer.unk_token_id] == gguf.TokenType.UNKNOWN


@pytest.mark.parametrize("adds_space", [True, False])
def test_the_leading_space_and_the_first_token_are_observed(adds_space: bool) -> None:
    result = written(sentencepiece_like_tokenizer(adds_space), 400)
    assert result["add_space_prefix"] is adds_space and result["add_bos_token"] is True
    assert written(byte_level_tokenizer(), 400)["add_bos_token"] is False


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "phi-1.5"])
def test_real_vocabularies_are_written_with_their_pre_tokenizer(name: str, data_dir) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = data_dir / "tokenizers" / name
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")))
    result = written(tokenizer, len(tokenizer))
    assert result["pre"] == {"qwen2.5-0.5b": "qwen2", "phi-1.5": "gpt-2"}[name]
    assert len(result["merges"]) == {"qwen2.5-0.5b": 151_387, "phi-1.5": 50_000}[name]
