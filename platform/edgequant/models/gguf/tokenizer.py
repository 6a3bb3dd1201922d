"""From the fields of a GGUF file to a tokenizer that cuts text as llama.cpp does, tried on a text before it is used."""

from __future__ import annotations

import itertools
from typing import Any

from gguf import TokenType

from edgequant.models.gguf.configuration import SPECIAL_TOKENS, token_id
from edgequant.models.gguf.contents import Contents
from edgequant.models.gguf.pre_tokenizers import ALIASES, WAYS, WHOLE_WORDS_FIRST, pre_tokenizer

PROBE = "It's 2025: 1,234 boats (12%) left   at 07:30.\n\tWASSER für été, 水位 上升 ⚠️ 🙂 don't_stop  "


def read_tokenizer(contents: Contents) -> Any:
    """The tokenizer in the file.

    Raises:
        UserError: a kind that is not known here, a vocabulary of another length than the embedding, or a tokenizer
            that does not give a text back.
    """
    tokens = _tokens(contents)
    kind = contents.tokenizer("model")
    if kind not in ("gpt2", "llama"):
        raise contents.refused(f"tokenizer.ggml.model must be gpt2 or llama, got {kind!r}")
    backend, adds_bos = (_byte_level if kind == "gpt2" else _sentencepiece)(contents, tokens)
    _add_tokens(contents, backend, tokens)
    _add_template(contents, backend, tokens, adds_bos)
    tokenizer = _wrapped(contents, backend, tokens)
    _check(contents, tokenizer, tokens, kind == "gpt2", adds_bos)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokens(contents: Contents) -> list[str]:
    tokens = contents.tokenizer("tokens")
    if not tokens:
        raise contents.refused("field tokenizer.ggml.tokens not found; give the model's transformers folder instead")
    for key in ("token_type", "scores"):
        if len(contents.tokenizer(key, tokens)) != len(tokens):
            raise contents.refused(f"tokenizer.ggml.{key} must have {len(tokens):,} values, one a token")
    if len(set(tokens)) != len(tokens):
        twice = next(token for at, token in enumerate(tokens) if token in tokens[:at])
        raise contents.refused(f"token {twice!r} stands twice in the vocabulary")
    return list(tokens)


def _types(contents: Contents, tokens: list[str]) -> list[int]:
    return list(contents.tokenizer("token_type", [TokenType.NORMAL] * len(tokens)))


def _byte_level(contents: Contents, tokens: list[str]) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models

    name = contents.tokenizer("pre")
    way = ALIASES.get(str(name), str(name))
    if way not in WAYS:
        known = ", ".join((*WAYS, *ALIASES))
        raise contents.refused(f"tokenizer.ggml.pre must be one of {known}, got {name!r}")
    merges = [_pair(merge) for merge in contents.tokenizer("merges", [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for merge in merges:
        if not all(part in vocabulary for part in (*merge, "".join(merge))):
            raise contents.refused(f"merge {' '.join(merge)!r} is of tokens that are not in the vocabulary")
    whole_first = way in WHOLE_WORDS_FIRST
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_first))
    backend.pre_tokenizer = pre_tokenizer(WAYS[way])
    backend.decoder = decoders.ByteLevel()
    return backend, bool(contents.tokenizer("add_bos_token", whole_first))


def _pair(merge: str) -> tuple[str, str]:
    """A merge may have a space of its own in front: only byte-level tokens have none within."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right


def _sentencepiece(contents: Contents, tokens: list[str]) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = token_id(contents, "unk")
    adds_space = bool(contents.tokenizer("add_space_prefix", True))
    scores = contents.tokenizer("scores")
    if scores is None:
        raise contents.refused("field tokenizer.ggml.scores not found; convert the model again")
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        merges_by_score(tokens, scores, _types(contents, tokens)),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )
    backend = Tokenizer(model)
    spaces = [normalizers.Prepend("▁")] if adds_space else []
    backend.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    first = [decoders.Strip(" ", 1, 0)] if adds_space else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first])
    return backend, bool(contents.tokenizer("add_bos_token", True))


def merges_by_score(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose union scores highest: every way to cut a token in two, best first.

    Of several cuts of one token, that into tokens of lower ids comes first.
    """
    whole = {token: index for index, token in enumerate(tokens) if types[index] in (TokenType.NORMAL, TokenType.UNUSED)}
    merges = []
    for token, index in whole.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(left, right) for left, right in cuts if left in whole and right in whole]
        pairs.sort(key=lambda pair: (whole[pair[0]], whole[pair[1]]))
        merges += [(-scores[index], index, *pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in merges]


def _add_tokens(contents: Contents, backend: Any, tokens: list[str]) -> None:
    """Tokens that are found in the text before anything else."""
    from tokenizers import AddedToken

    types = _types(contents, tokens)
    unknown = token_id(contents, "unk")
    specials = {token_id(contents, name) for name in ("bos", "eos", "pad")} - {None, unknown}
    control = [index for index, kind in enumerate(types) if kind == TokenType.CONTROL or index in specials]
    users = [index for index, kind in enumerate(types) if kind == TokenType.USER_DEFINED and index not in specials]
    backend.add_special_tokens([AddedToken(tokens[index], normalized=False, special=True) for index in control])
    backend.add_tokens([AddedToken(tokens[index], normalized=False, special=False) for index in users])


def _add_template(contents: Contents, backend: Any, tokens: list[str], adds_bos: bool) -> None:
    """The first and last token that every text gets."""
    from tokenizers import processors

    first = [tokens[index] for index in [token_id(contents, "bos")] if adds_bos and index is not None]
    adds_eos = bool(contents.tokenizer("add_eos_token", False))
    last = [tokens[index] for index in [token_id(contents, "eos")] if adds_eos and index is not None]
    if not first and not last:
        return
    pair = [*(f"{one}:1" for one in first), "$B:1", *(f"{one}:1" for one in last)]
    special = {one: tokens.index(one) for one in (*first, *last)}
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last], pair=[*first, "$A", *last, *pair], special_tokens=list(special.items())
    )


def _wrapped(contents: Contents, backend: Any, tokens: list[str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    indices = {name: token_id(contents, name) for name in SPECIAL_TOKENS}
    special = {f"{name}_token": tokens[index] for name, index in indices.items() if index is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    default = contents.fields.get("tokenizer.chat_template")
    named = {name: contents.fields.get(f"tokenizer.chat_template.{name}") for name in _template_names(contents)}
    if named:
        tokenizer.chat_template = named | ({"default": default} if default else {})
    elif default:
        tokenizer.chat_template = default
    return tokenizer


def _template_names(contents: Contents) -> list[str]:
    return [name for name in contents.fields.get("tokenizer.chat_templates", []) if name != "default"]


def _check(contents: Contents, tokenizer: Any, tokens: list[str], byte_level: bool, adds_bos: bool) -> None:
    """What the tokenizer does against what the file says: a wrong one gives a perplexity of thousands, not an error."""
    vocabulary = tokenizer.get_vocab()
    wrong = [token for index, token in enumerate(tokens) if vocabulary.get(token) != index]
    if wrong or len(tokenizer) != len(tokens):
        raise contents.refused(f"its {len(tokens):,} tokens became {len(tokenizer):,}, {len(wrong)} with other ids")
    for name in SPECIAL_TOKENS:
        index = token_id(contents, name)
        if index is not None and getattr(tokenizer, f"{name}_token_id") != index:
            raise contents.refused(f"token {name} must have id {index}, got {getattr(tokenizer, f'{name}_token_id')}")
    text = _writable(PROBE, vocabulary, byte_level)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise contents.refused(f"its tokenizer does not give {text[:20]!r}... back; convert the model again")
    begins = token_id(contents, "bos")
    if adds_bos and begins is not None and tokenizer(text)["input_ids"][:1] != [begins]:
        raise contents.refused(f"its texts must begin with token {begins}")


def _writable(text: str, vocabulary: dict[str, int], byte_level: bool) -> str:
    """The characters that the vocabulary can hold: some have not all the bytes."""
    if byte_level:
        symbols = _byte_symbols()
        return "".join(c for c in text if all(symbols[byte] in vocabulary for byte in c.encode()))
    return "".join(
        c for c in text if c.replace(" ", "▁") in vocabulary or all(f"<0x{b:02X}>" in vocabulary for b in c.encode())
    )


def _byte_symbols() -> dict[int, str]:
    """GPT-2's characters for bytes: printable Latin-1 stands for itself, the rest follows from 256 on."""
    itself = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return {byte: chr(byte) if byte in itself else chr(next(others)) for byte in range(256)}
