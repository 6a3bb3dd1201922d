"""Training text as packed rows of tokens: checked against what is evaluated on, mixed, a part set apart, shuffled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.workflows.steps.data import SELF_GENERATED, is_official, training_texts
from edgequant.workflows.steps.text_mix import Part, instruction_pairs, is_instructions, parse_mix, rows_of_each

if TYPE_CHECKING:
    from torch import Tensor

    from edgequant.evaluation.tasks.task import EvaluationData, Rows

VALIDATION_SHARE = 0.1  # of the training text, at most
MOST_VALIDATION = 32  # rows of a data set's own validation split
FEWEST_TOKENS = 2  # of a row
MOST_CHARACTERS = 64  # that are looked at for each token of a row, to see whether a text fills it
DEFAULT_GENERATED = 512  # rows that the model writes where nothing says how many are needed


class Split(NamedTuple):
    """A text's rows: to train on and to validate on [n, length] int64, and which of the former the model wrote [n].

    Tokens below 0 are read and not learnt, as `instruction_rows` gives them.
    """

    training: Tensor
    validation: Tensor
    generated: Tensor


def training_sequences(
    dataset: str,
    tokenizer: Any,
    length: int,
    data: EvaluationData,
    data_dir: str | None,
    *,
    seed: int = 0,
    model: Any = None,
    needed: int = 0,
) -> Tensor:
    """What `split_sequences` trains on, with nothing set apart."""
    return split_sequences(dataset, tokenizer, length, data, data_dir, seed=seed, model=model, needed=needed).training


def split_sequences(
    dataset: str,
    tokenizer: Any,
    length: int,
    data: EvaluationData,
    data_dir: str | None,
    *,
    seed: int = 0,
    model: Any = None,
    needed: int = 0,
    beside: bool = False,
    set_apart: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Split:
    """Training text as shuffled packed rows [sequences, length], refused if it repeats evaluation text.

    Args:
        dataset: as `training_texts`, or `self-generated`: as many rows as are `needed` (0: as the other parts of the
            mix have), written by `model`; or a mix of these with shares of the tokens, which takes of each what the
            scarcest allows.
        beside: whether what the model writes is to begin with pieces of the other parts, and to answer them, as
            `generated_sequences` does it.
        set_apart: splits a text's rows into those to train on and those to validate on, where it has no validation
            split of its own; None keeps all to train on. Of a mix, what the model wrote itself is not validated on.

    Returns:
        The rows, shuffled; of those to validate on there may be none.

    Raises:
        UserError: no text, too little of it, or overlap with what is evaluated on.
    """
    import torch

    def order(rows: Tensor) -> Tensor:
        return torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))

    parts = parse_mix(dataset)
    rows: dict[str, Tensor] = {}
    held = []
    for part in sorted(
        parts, key=lambda part: part.name == SELF_GENERATED
    ):  # when it is known how many the others have
        wanted = math.ceil(part.share * (needed or _whole(parts, rows)))
        if set_apart is not None and len(parts) == 1:
            wanted += len(set_apart(torch.empty(math.ceil(wanted / (1 - VALIDATION_SHARE)), 1))[1])
        others = [found for name, found in rows.items() if not is_instructions(name)]
        passages = torch.cat(others) if beside and others and part.name == SELF_GENERATED else None
        found = _rows(part.name, tokenizer, length, data, data_dir, seed, model, wanted, passages)
        rows[part.name] = found
        if set_apart is not None and (len(parts) == 1 or part.name != SELF_GENERATED):
            own = _own_validation(part.name, tokenizer, length, data)
            rows[part.name], validation = (found, own) if len(own) else set_apart(found)
            held.append(validation)
    kept = torch.cat(held) if held else next(iter(rows.values()))[:0]
    counts = rows_of_each(parts, [len(rows[part.name]) for part in parts])
    drawn = {part.name: rows[part.name][order(rows[part.name])[:n]] for part, n in zip(parts, counts, strict=True)}
    mixed = torch.cat(list(drawn.values()))
    generated = torch.cat([torch.full((len(found),), name == SELF_GENERATED) for name, found in drawn.items()])
    chosen = order(mixed) if len(parts) > 1 else torch.arange(len(mixed))
    return Split(mixed[chosen], kept[order(kept)], generated[chosen])


def fitting_length(dataset: str, tokenizer: Any, data_dir: str | None, longest: int) -> int:
    """Tokens a row, `longest` at most, so that each part of a text of which somebody else is the author fills one.

    Where nothing does, `longest`: who packs the rows says what is wrong with the text.
    """
    from edgequant.corpora.packing import pack
    from edgequant.errors import UserError

    found = longest
    for part in parse_mix(dataset):
        if part.name == SELF_GENERATED or is_instructions(part.name):
            continue
        try:
            texts = _beginning(training_texts(part.name, data_dir), longest * MOST_CHARACTERS)
            found = min(found, pack(texts, tokenizer, FEWEST_TOKENS).numel())
        except UserError:
            return longest
    return found


def _beginning(texts: Sequence[str], characters: int) -> list[str]:
    """The first texts, so many characters of them at most: a long text takes long to tokenise."""
    found: list[str] = []
    for text in texts:
        found.append(text[:characters])
        characters -= len(text)
        if characters <= 0:
            break
    return found


def calibration_rows(sequences: Tensor, generated: Tensor, count: int, *, own: bool) -> Tensor:
    """Rows that show PTQ what activations look like, out of those of a text [n, length].

    Args:
        generated: which of them the model wrote itself [n], bool. Integers that were chosen on its own text cost tasks
            more, so that such rows come in where there are too few others.
        count: how many.
        own: as many again of those that it wrote, in turn with the others, as `ptq.methods.needs_own_text` says.
    """
    import torch

    others, written = sequences[~generated], sequences[generated]
    if not own:
        return torch.cat([others, written])[:count]
    return in_turn(others[:count], written[:count])


def in_turn(first: Tensor, second: Tensor) -> Tensor:
    """The rows of both, one of each after the other, until the shorter ends."""
    import torch

    shared = min(len(first), len(second))
    mixed = torch.stack([first[:shared], second[:shared]], 1).flatten(0, 1)
    return torch.cat([mixed, first[shared:], second[shared:]])


def _own_validation(dataset: str, tokenizer: Any, length: int, data: EvaluationData) -> Tensor:
    """Rows of a data set's own validation split, evenly over it; none where it has no such split, or a short one.

    Raises:
        UserError: it repeats what is evaluated on.
    """
    import torch

    from edgequant.corpora.contamination import refuse_overlap
    from edgequant.corpora.packing import pack
    from edgequant.workflows.steps.data import domain_rows

    texts = [text for _, text in domain_rows(dataset, "validation")]
    if sum(len(tokenizer(text, verbose=False)["input_ids"]) for text in texts) < length:
        return torch.zeros(0, length, dtype=torch.int64)
    refuse_overlap(texts, evaluated_texts(data))
    rows = pack(texts, tokenizer, length)
    return rows[torch.linspace(0, len(rows) - 1, min(MOST_VALIDATION, len(rows))).round().long()]


def _whole(parts: Sequence[Part], rows: Mapping[str, Tensor]) -> int:
    """Rows of a mix when the scarcest of the parts that are there is used up."""
    there = [len(rows[part.name]) / part.share for part in parts if part.name in rows]
    return math.ceil(min(there)) if there else DEFAULT_GENERATED


def _rows(
    dataset: str,
    tokenizer: Any,
    length: int,
    data: EvaluationData,
    data_dir: str | None,
    seed: int,
    model: Any,
    needed: int,
    passages: Tensor | None,
) -> Tensor:
    """One text as packed rows in its own order, checked and logged."""
    from edgequant.corpora.contamination import refuse_overlap
    from edgequant.corpora.instruction_rows import instruction_rows
    from edgequant.corpora.packing import pack
    from edgequant.files import sha256_of_bytes
    from edgequant.tracking.logging import log_dataset

    if dataset == SELF_GENERATED:
        from edgequant.workflows.steps.generated_text import generated_sequences

        rows = generated_sequences(model, tokenizer, needed, length, seed=seed, passages=passages)
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    elif is_instructions(dataset):
        pairs = instruction_pairs(dataset)
        texts, rows = [pair.text for pair in pairs], instruction_rows(pairs, tokenizer, length)
    else:
        texts = training_texts(dataset, data_dir)
        rows = pack(texts, tokenizer, length)
    refuse_overlap(texts, evaluated_texts(data))
    log_dataset(dataset, sha256_of_bytes("\n".join(texts)), dataset, rows=len(texts), context="training")
    return rows


def evaluated_texts(data: EvaluationData) -> dict[str, list[str]]:
    """The running text in what is evaluated on, by data set and split."""
    from edgequant.corpora.benchmarks import BENCHMARKS
    from edgequant.evaluation.tasks.registry import find_data_set

    found = {}
    for name, rows in data.items():
        data_set = find_data_set(name)
        if data_set.texts is not None and rows:
            title = BENCHMARKS[name].name if is_official(data_set) else name
            found[f"{title}/{data_set.report}"] = [*data_set.texts(rows), *_source_documents(rows)]
    return found


def _source_documents(rows: Rows) -> list[str]:
    """The bundled documents that rows name as their source: a question's answer may stand anywhere in its document."""
    from edgequant.corpora.disaster.corpus import bundled_documents

    sources = {row["source"] for row in rows if isinstance(row, dict) and isinstance(row.get("source"), str)}
    return [document.text for document in bundled_documents() if document.source in sources] if sources else []
