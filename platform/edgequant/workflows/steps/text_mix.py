"""Training text as a mix of several, with the share of each: `disaster,wikitext-2:0.3`; names checked. Light."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgequant.errors import UserError

if TYPE_CHECKING:
    from edgequant.corpora.instruction_rows import Pair

TEXTS = ("disaster", "disaster-multilingual", "wikitext-2")
INSTRUCTIONS = "disaster-instructions"
SELF_GENERATED = "self-generated"
NAMED = (*TEXTS, INSTRUCTIONS, SELF_GENERATED)  # what else is given is a path


class Part(NamedTuple):
    """One text of a mix: its name or path, and its share of the tokens, above 0 to 1."""

    name: str
    share: float


def parse_mix(dataset: str) -> list[Part]:
    """Read a training text: one name or path, or several with commas, each with its share behind a colon.

    Parts without a share divide what the others leave equally. A path that exists is one text whatever it contains.

    Raises:
        UserError: a share that is none, shares that do not make up the whole, or a part given twice.
    """
    if "," not in dataset or Path(dataset).expanduser().exists():
        return [Part(dataset, 1.0)]
    pieces = [piece.rpartition(":") for piece in _pieces(dataset)]
    names = [name if colon else last for name, colon, last in pieces]
    given = [_share(dataset, last) if colon else None for _, colon, last in pieces]
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"dataset must be a mix of different texts such as disaster,wikitext-2:0.3, got {dataset!r}")
    given_sum, open_parts = sum(share for share in given if share is not None), given.count(None)
    rest = 1.0 - given_sum
    if (rest <= 1e-9) if open_parts else not math.isclose(given_sum, 1.0, abs_tol=1e-6):
        raise UserError(
            f"dataset {dataset!r}: the given shares must make "
            + ("less than 1, since other parts take the rest" if open_parts else "1, or leave a part without a share")
            + f", got {given_sum:g}"
        )
    return [Part(name, rest / open_parts if share is None else share) for name, share in zip(names, given, strict=True)]


def _pieces(dataset: str) -> list[str]:
    """What stands between commas, but those in the name of a file or folder that exists."""
    found, rest = [], dataset.split(",")
    while rest:
        longer = (count for count in range(len(rest), 1, -1) if _is_path(rest[:count]))
        count = next(longer, 1)
        found.append(",".join(rest[:count]).strip())
        rest = rest[count:]
    return found


def _is_path(pieces: Sequence[str]) -> bool:
    """Whether pieces with commas between them are a path, the last one with a share or without."""
    without = [*pieces[:-1], pieces[-1].rpartition(":")[0] or pieces[-1]]
    return any(Path(",".join(each).strip()).expanduser().exists() for each in (pieces, without))


def _share(dataset: str, given: str) -> float:
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(
            f"dataset {dataset!r}: a share must be a number between 0 and 1 behind the colon, got {given!r}"
        )
    return share


def with_parts(dataset: str, change: Callable[[str], str]) -> str:
    """The same mix with each part's name or path changed."""
    parts = parse_mix(dataset)
    if len(parts) == 1:
        return change(dataset)
    return ",".join(f"{change(part.name)}:{part.share!r}" for part in parts)


def rows_of_each(parts: Sequence[Part], available: Sequence[int]) -> list[int]:
    """How many rows of equal length each part gives: the shares hold, and the scarcest part is used up."""
    whole = min(rows / part.share for part, rows in zip(parts, available, strict=True))
    return [min(rows, max(1, round(part.share * whole))) for part, rows in zip(parts, available, strict=True)]


def is_instructions(dataset: str) -> bool:
    """Whether one text is instructions with answers: the bundled ones or a .jsonl file."""
    return dataset == INSTRUCTIONS or (dataset not in NAMED and dataset.lower().endswith(".jsonl"))


def instruction_pairs(dataset: str, option: str = "dataset") -> list[Pair]:
    """Instructions with answers, of which the answers are learnt: the bundled English ones or a file's.

    Raises:
        UserError: as `read_instructions`.
    """
    from edgequant.corpora.disaster.corpus import instructions
    from edgequant.corpora.instruction_rows import Pair, read_instructions

    if dataset == INSTRUCTIONS:
        return [Pair(row["instruction"], row["answer"]) for row in instructions()]
    return read_instructions(dataset, option)


def check_dataset(
    dataset: str,
    *,
    self_generated: bool = False,
    replayed: bool = False,
    instructions: bool = False,
    option: str = "dataset",
) -> None:
    """Refuse a training text that is neither a name nor a path nor a mix of them, before anything is loaded.

    Args:
        self_generated: whether text that the model itself writes will do.
        replayed: whether it will do beside other text.
        instructions: whether instructions will do, of which the answers alone are learnt.
        option: that named it, for messages.

    Raises:
        UserError: names the value and the ones that work.
    """
    parts = parse_mix(dataset)
    for part in parts:
        check_one(part.name, self_generated or (replayed and len(parts) > 1), option)
        if is_instructions(part.name) and not instructions:
            raise _no_instructions(part.name, option)


def _no_instructions(name: str, option: str) -> UserError:
    if name == INSTRUCTIONS:
        return UserError(
            f"{option} {name} is instructions with answers, which finetune alone learns; name one of "
            f"{', '.join(TEXTS)}, or a file or folder"
        )
    return UserError(
        f"{option} {name!r} must be Markdown or plain text, got jsonl; make a data set of it first: "
        f"`edgequant corpus --source {shlex.quote(name)} --output FOLDER`; instructions with answers are finetune's"
    )


def check_replay(replay: str | None) -> None:
    """Refuse what is no text with a share.

    Raises:
        UserError: names the value and an example.
    """
    if replay is not None:
        _replayed(replay)


def _replayed(replay: str) -> Part:
    parts = parse_mix(f"disaster,{replay}")
    if len(parts) != 2 or ":" not in replay or parts[1].name == "disaster":
        raise UserError(f"replay must be one text and its share, such as self-generated:0.5, got {replay!r}")
    check_dataset(parts[1].name, self_generated=True, option="replay")
    return parts[1]


def with_replay(dataset: str, replay: str | None) -> str:
    """A text with another one and its share replayed beside it; as it is where it holds that one already.

    Raises:
        UserError: as `check_replay` and `parse_mix`.
    """
    replayed = None if replay is None else _replayed(replay)
    parts = parse_mix(dataset)
    if replayed is None or replayed.name in {part.name for part in parts}:
        return dataset
    mixed = [Part(part.name, part.share * (1 - replayed.share)) for part in parts]
    return ",".join(f"{part.name}:{part.share!r}" for part in [*mixed, replayed])


def check_guard(guard: str, dataset: str) -> None:
    """Refuse a guard text that does not exist, or that is trained on.

    Raises:
        UserError: names both.
    """
    check_dataset(guard, self_generated=True, option="guard")
    if guard != SELF_GENERATED and guard in {part.name for part in parse_mix(dataset)}:
        raise UserError(f"guard must be a text that is not trained on, got {guard!r}, which dataset {dataset!r} holds")


def check_one(dataset: str, self_generated: bool, option: str = "dataset") -> None:
    """`check_dataset` of one part."""
    if dataset == SELF_GENERATED:
        if self_generated:
            return
        raise UserError(
            "dataset self-generated is what the model itself writes: qat, ptq and tune of qat can use it, fine-tuning "
            f"would learn from it what the model knows; name one of {', '.join(TEXTS)}, or a file or folder"
        )
    if dataset not in (*TEXTS, INSTRUCTIONS) and not Path(dataset).expanduser().exists():
        renamed = f"; 'generated' is now called {SELF_GENERATED}" if dataset == "generated" else ""
        raise UserError(f"{option} must be one of {', '.join(TEXTS)}, a file or a folder, got {dataset!r}{renamed}")


def check_test_split(dataset: str | None) -> None:
    """Refuse what is to be evaluated on and has no test split.

    Raises:
        UserError: names the value and what will do.
    """
    if dataset is None or dataset == "disaster-multilingual":
        return
    if not (Path(dataset).expanduser() / "test" / "state.json").is_file():
        raise UserError(
            f"dataset must be a data set on disk with a test split, such as `edgequant corpus` makes, got {dataset!r}; "
            "leave it out for the bundled documents"
        )
