"""A tokenizer as llama.cpp reads it: vocabulary, kinds of tokens, merges or scores, special tokens, chat template."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter, Keys, TokenType

from edgequant.errors import UserError
from edgequant.models.gguf.contents import Contents
from edgequant.models.gguf.pre_tokenizers import BYTES, DIGITS, GPT2, WAYS, WHOLE_WORDS_FIRST
from edgequant.models.gguf.tokenizer import PROBE, read_tokenizer

PRE_TOKENIZERS = {steps: name for name, steps in WAYS.items()}  # the steps are the identity


def write_tokenizer(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Write a fast transformers tokenizer, its vocabulary made exactly as long as the embedding.

    Args:
        tokenizer: byte-level BPE (Qwen, Phi, SmolLM, Llama 3) or BPE with byte fallback (Llama 2, Gemma).
        rows: rows of the embedding; ids beyond the vocabulary become unused tokens, tokens beyond them are left out.

    Raises:
        UserError: a tokenizer that llama.cpp cannot reproduce.
    """
    definition = _definition(tokenizer)
    tokens, types = _tokens(definition, rows)
    if definition["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(definition, tokens))
        writer.add_add_space_prefix(_adds_space(tokenizer))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_name_that_fits(definition))
        _add_merges(writer, definition["model"]["merges"])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_special_tokens(writer, tokenizer, rows)


def check_tokenizer(tokenizer: Any, rows: int) -> None:
    """Refuse what `write_tokenizer` and `check_reads_back` refuse, without a file.

    Args:
        rows: of the embedding.

    Raises:
        UserError: see there.
    """
    writer = GGUFWriter(None, "llama")
    write_tokenizer(writer, tokenizer, rows)
    check_reads_back(writer, tokenizer)


def check_reads_back(writer: GGUFWriter, tokenizer: Any) -> None:
    """Refuse a tokenizer that a reader of the fields would take for another one: normalizers, merges, added tokens.

    Raises:
        UserError: the fields written give other tokens for a text of letters, digits, spaces, signs and scripts.
    """
    fields = {name: field.value for name, field in writer.kv_data[0].items()}
    again = read_tokenizer(Contents(Path("written"), fields, {}))
    ours, theirs = (one(PROBE)["input_ids"] for one in (tokenizer, again))
    if ours != theirs:
        at = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1)
        shown = " and ".join(
            repr(one.convert_ids_to_tokens(ids[at:][:4])) for one, ids in ((tokenizer, ours), (again, theirs))
        )
        raise UserError(
            f"tokenizer for GGUF must cut a text as llama.cpp will, got {shown}; keep the model as a folder"
        )


def _definition(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    kind = definition["model"].get("type")
    if kind != "BPE":
        raise UserError(f"tokenizer for GGUF must be a fast BPE one, got {type(tokenizer).__name__} ({kind})")
    _check_normalizer(definition)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if value := definition["model"].get(name):
            raise UserError(f"tokenizer for GGUF must have no {name}, got {value!r}; keep the model as a folder")
    return dict(definition)


def _check_normalizer(definition: dict[str, Any]) -> None:
    """llama.cpp changes no characters before it cuts; NFC, which Qwen2's asks for, is what text is in already."""
    outer = definition.get("normalizer") or {}
    for step in outer.get("normalizers", [outer]):
        match step:
            case {} if not step:
                continue
            case {"type": "NFC"} | {"type": "Prepend", "prepend": "▁"}:
                continue
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                continue
        raise UserError(
            f"normalizer for GGUF must be none, NFC or SentencePiece's spaces, got {json.dumps(step)}, which llama.cpp "
            "does not compute; keep the model as a folder"
        )


def _tokens(definition: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [TokenType.UNUSED] * rows
    falls_back = bool(definition["model"].get("byte_fallback"))
    for token, index in definition["model"]["vocab"].items():
        if index < rows:
            tokens[index] = token
            is_byte = falls_back and re.fullmatch(r"<0x[0-9A-F]{2}>", token)
            types[index] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in definition["added_tokens"]:
        if added["id"] < rows:
            # Found in the raw text before anything else, where a space is still a space.
            tokens[added["id"]] = added["content"].replace("▁", " ") if falls_back else added["content"]
            types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if falls_back and (unknown := definition["model"].get("unk_token") or "<unk>") in tokens:
        types[tokens.index(unknown)] = TokenType.UNKNOWN
    return tokens, types


def pre_tokenizer_name(definition: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer cuts text.

    Raises:
        UserError: none of the known ways; a wrong guess would tokenise numbers or spaces differently without a word.
    """
    outer = definition.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    identity = tuple(_step_identity(step) for step in steps)
    if identity not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS.values())
        raise UserError(f"pre-tokenizer for GGUF must be one of {known}, got {json.dumps(outer)}")
    return PRE_TOKENIZERS[identity]


def _name_that_fits(definition: dict[str, Any]) -> str:
    name = pre_tokenizer_name(definition)
    wanted, found = name in WHOLE_WORDS_FIRST, bool(definition["model"].get("ignore_merges"))
    if wanted != found:
        raise UserError(
            f"ignore_merges for GGUF must be {wanted} with pre-tokenizer {name}, got {found}, which "
            "llama.cpp does not compute; keep the model as a folder"
        )
    return name


def _step_identity(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return BYTES
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return str(pattern)
    return json.dumps(step)


def _merge_pairs(merges: list[Any]) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges]


def _add_merges(writer: GGUFWriter, merges: list[Any]) -> None:
    """`left right` per line: byte-level vocabularies write a space as another character. A vocabulary of bare bytes
    has no merges, which llama.cpp takes for an empty list only if the list is there."""
    lines = [" ".join(pair) for pair in _merge_pairs(merges)]
    writer.add_key_value(Keys.Tokenizer.MERGES, lines, GGUFValueType.ARRAY, GGUFValueType.STRING)


class WriterOfEmptyLists(GGUFWriter):
    """The gguf package refuses to write an array without items, which the format allows: type, then a count of 0."""

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        if vtype is GGUFValueType.ARRAY and len(val) == 0 and sub_type is not None:
            kind = self._pack("I", vtype) if add_vtype else b""
            return kind + self._pack("I", sub_type) + self._pack("Q", 0)
        return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))


def _scores(definition: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores from the order of the merges.

    SentencePiece joins the neighbouring pieces whose union scores highest, the fast tokenizer those whose merge comes
    first: -rank gives both the same order (a SentencePiece BPE model's own scores are ranks, too).
    """
    ranks: dict[str, int] = {}
    for left, right in _merge_pairs(definition["model"]["merges"]):
        ranks.setdefault(left + right, len(ranks))
    last = len(ranks)
    return [-float(ranks.get(token, last)) if not token.startswith("<0x") else 0.0 for token in tokens]


def _adds_space(tokenizer: Any) -> bool:
    """Whether "a" is read as " a"."""
    pieces = tokenizer.tokenize("a")
    return bool(pieces) and pieces[0].startswith("▁")


def _write_special_tokens(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None and index < rows:
            getattr(writer, f"add_{name}_token_id")(index)
    probe = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and probe[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(probe) > 1 and probe[-1] == tokenizer.eos_token_id)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])
    elif template:
        writer.add_chat_template(template)
