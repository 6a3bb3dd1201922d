"""BOS where the family needs it, once, and nowhere else."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.backends.transformers_model import TransformersModel
from edgequant.evaluation.tasks.perplexity import windows_of

# Whether the family's published tokenizer begins a text with BOS itself.
ADDS_BOS = {"qwen2.5-0.5b": False, "phi-1.5": False, "tinyllama-1.1b": True, "gemma-3-1b-it": True}


def test_gemma_gets_bos_even_where_the_tokenizer_adds_none(small_model, byte_tokenizer):
    assert TransformersModel(small_model("gemma3"), byte_tokenizer).encode(["a"]) == [
        [256, *byte_tokenizer("a").input_ids]
    ]
    assert TransformersModel(small_model("gemma3"), byte_tokenizer, bos="never").encode(["a"]) == [
        byte_tokenizer("a").input_ids
    ]


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "phi"])
def test_other_families_follow_their_tokenizer(small_model, byte_tokenizer, architecture):
    scorer = TransformersModel(small_model(architecture), byte_tokenizer)
    assert scorer.bos is None
    assert TransformersModel(small_model(architecture), byte_tokenizer, bos="always").bos == 256


def test_bos_that_the_text_already_has_is_not_doubled(small_model, byte_tokenizer):
    scorer = TransformersModel(small_model("gemma3"), byte_tokenizer)
    assert scorer.encode(["<bos>a"]) == scorer.encode(["a"])


def test_asking_for_bos_without_one_says_so(small_model, byte_tokenizer):
    import copy

    without = copy.deepcopy(byte_tokenizer)
    without.bos_token = None
    with pytest.raises(UserError, match="no BOS token"):
        TransformersModel(small_model("llama"), without, bos="always")


def test_a_window_with_bos_is_no_longer_than_one_without(byte_tokenizer):
    plain, with_bos = windows_of(range(100), 10), windows_of(range(100), 10, bos=256)
    assert {len(window.tokens) for window in plain + with_bos} == {10}
    assert len(plain) == 10 and len(with_bos) == 11
    assert {window.tokens[0] for window in with_bos} == {256}
    assert {window.scored for window in plain + with_bos} == {9}


@pytest.mark.parametrize("name", sorted(ADDS_BOS))
def test_the_four_published_tokenizers_are_read_as_their_makers_meant(small_model, data_dir, tmp_path, name):
    from transformers import AutoTokenizer

    folder = shutil.copytree(data_dir / "tokenizers" / name, tmp_path / name)
    for packed in folder.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    config = next(
        path
        for path in (data_dir / "model-configs").iterdir()
        if path.name.startswith(name.replace("phi-1.5", "phi-1_5"))
    )
    (folder / "config.json").write_text(json.dumps(json.loads(config.read_text())))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer = TransformersModel(small_model("llama"), tokenizer)
    assert (scorer.bos is not None) == ADDS_BOS[name]
    choice = scorer.encode_choices(["Is it wet?\nAnswer:"], (" no", " yes"))[0]
    assert [len(part) for part in choice.continuations] == [1, 1]  # one forward pass for both answers
    assert scorer.decode(choice.context + choice.continuations[1]).endswith("Answer: yes")
