"""Text that no variant of a comparison is trained on: a validation part of the training text, and a general guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgequant.corpora.packing import pack
from edgequant.errors import UserError
from edgequant.models.devices import pick_dtype
from edgequant.training.settings import TrainingSettings
from edgequant.training.shared_parts import SharedParts
from edgequant.training.watch import Losses, Watch, rows_to_watch
from edgequant.workflows.steps.data import SELF_GENERATED, training_texts
from edgequant.workflows.steps.generated_text import generated_sequences
from edgequant.workflows.steps.held_out_texts import GUARD, VALIDATION, allowed
from edgequant.workflows.steps.sequences import VALIDATION_SHARE, Split, split_sequences

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant.models import LoadedModel
    from edgequant.workflows.settings import RunSettings

TOKENS_AT_ONCE = 4096  # an integer model dequantises its weights once in each forward pass
MOST_ROWS = {"cpu": 16, "cuda": 64}  # of each held-out text
GUARD_SEED = 1_000_003  # added to the run's: no row of the guard is one that is trained on
SIMULATION_SLACK = 2e-3  # nats: what integers may cost beside their simulation


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out text of a comparison.

    Attributes:
        texts: `validation`, where the training text is long enough to spare some, and `guard`: token rows [n, length]
            int64, on which states and variants are chosen.
        reported: a second part of the guard as texts, on which every variant is measured.
        name: of the guard text.
    """

    texts: Mapping[str, Tensor]
    reported: list[str]
    name: str

    def losses(self, model: Any, *, precision: str = "float32") -> Losses:
        """Mean next-token loss of each text on a model as it is deployed, nats per token.

        Args:
            precision: of the forward pass: bfloat16, float32, or auto for what the device computes natively.
        """
        length, device = next(iter(self.texts.values())).shape[1], str(next(model.parameters()).device)
        watch = Watch(texts=self.texts, batch_size=max(1, TOKENS_AT_ONCE // length))
        return watch.losses(model, precision=pick_dtype(precision, device))

    def watch(
        self,
        settings: TrainingSettings,
        *,
        taught: bool,
        limits: Mapping[str, float] | None = None,
        as_deployed: Callable[[nn.Module], None] | None = None,
    ) -> Watch:
        """What a training looks at: as many rows as its length allows.

        Args:
            taught: whether a teacher runs at every step.
            limits: losses on these rows that the best state should keep to.
            as_deployed: as `Watch`.
        """
        return Watch(
            texts={
                name: rows[: rows_to_watch(settings, len(rows), len(self.texts), taught=taught)]
                for name, rows in self.texts.items()
            },
            limits={name: allowed(name, limit) + SIMULATION_SLACK for name, limit in (limits or {}).items()},
            as_deployed=as_deployed,
            batch_size=settings.batch_size,
        )


@torch.no_grad()
def keep_from_forgetting(trained: nn.Module, start: nn.Module, held_out: HeldOut, most: float | None) -> float:
    """Move a trained model back towards its start, in place, until it has forgotten no more than is accepted.

    Between two models of one start the loss on what was learned rises later than the one on what was forgotten falls
    (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).

    Args:
        trained: with the parameters' names and shapes of `start`.
        most: per cent by which the guard text's perplexity may lie above the start's; None: without a limit.

    Returns:
        The share of the way from the start that is kept, to 1/16; 1: all of it.
    """
    if most is None:
        return 1.0
    guard = replace(held_out, texts={GUARD: held_out.texts[GUARD]})
    limit = guard.losses(start, precision="auto")[GUARD] + math.log1p(most / 100)
    begun, ended = dict(start.named_parameters()), {n: p.detach().clone() for n, p in trained.named_parameters()}

    def move(share: float) -> None:
        for name, parameter in trained.named_parameters():
            parameter.copy_(torch.lerp(begun[name].to(parameter), ended[name], share))

    def forgets(share: float) -> bool:
        move(share)
        return guard.losses(trained, precision="auto")[GUARD] > limit

    if not forgets(1.0):
        return 1.0
    kept = 0.0
    for step in (1 / 2, 1 / 4, 1 / 8, 1 / 16):
        if not forgets(kept + step):
            kept += step
    move(kept)
    print(f"control: keeps {kept:.0%} of the way that it went; more would forget more than {most:g}%", flush=True)
    return kept


def split_and_held_out(
    dataset: str,
    guard: str,
    loaded: LoadedModel,
    length: int,
    data: EvaluationData,
    run: RunSettings,
    *,
    needed: int,
    shared: SharedParts,
) -> tuple[Split, HeldOut]:
    """The rows of a training text and the held-out text beside them.

    Args:
        dataset, guard: names or paths of texts.
        length: tokens per row.
        data: whose texts the training text must not repeat.
        needed: rows that are to be drawn; 0: as many as the text has.
        shared: where experiments of one machine on this data share the rows.

    Raises:
        UserError: as `split_sequences` and `held_out`.
    """
    model, tokenizer, device = loaded.model, loaded.tokenizer, str(loaded.model.device)

    def make() -> tuple[Split, HeldOut]:
        text = split_sequences(
            dataset, tokenizer, length, data, run.data_dir, seed=run.seed, model=model, needed=needed,
            set_apart=partial(set_apart, device=device),
        )  # fmt: skip
        return text, held_out(guard, text.validation, model, tokenizer, length, run.data_dir, seed=run.seed)

    named = {"model": loaded.source.name, "dataset": dataset, "guard": guard, "length": length, "needed": needed}
    return shared.once("tokens", named | {"seed": run.seed, "data_dir": run.data_dir, "device": device}, make)


def set_apart(rows: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Rows of a text to train on and to validate on, the latter spread evenly over it; none of a text of one row.

    Args:
        rows: [n, length] int64 in the order of the text.
    """
    count = min(_most(device), round(VALIDATION_SHARE * len(rows)) or min(1, len(rows) - 1))
    chosen = torch.linspace(0, len(rows) - 1, count + 2)[1:-1].round().long().unique()
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[chosen] = True
    return rows[~held], rows[held]


def held_out(
    guard: str, validation: Tensor, model: Any, tokenizer: Any, length: int, data_dir: str | None, *, seed: int
) -> HeldOut:
    """The held-out text of a comparison.

    Args:
        guard: self-generated, or a text's name or path.
        validation: rows set apart from the training text [n, length], n may be 0.
        model: floating-point; writes the guard text where that is asked for.
        length: tokens per row.

    Raises:
        UserError: the guard text does not fill two rows.
    """
    device = str(next(model.parameters()).device)
    rows = _guard_rows(guard, model, tokenizer, length, data_dir, 2 * _most(device), seed=seed)
    chosen, reported = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    texts = {VALIDATION: validation, GUARD: chosen} if len(validation) else {GUARD: chosen}
    return HeldOut(texts=texts, reported=tokenizer.batch_decode(reported, skip_special_tokens=True), name=guard)


def _guard_rows(
    guard: str, model: Any, tokenizer: Any, length: int, data_dir: str | None, count: int, *, seed: int
) -> Tensor:
    if guard == SELF_GENERATED:
        return generated_sequences(model, tokenizer, count, length, seed=seed + GUARD_SEED)
    rows = pack(training_texts(guard, data_dir), tokenizer, length)
    if len(rows) < 2:
        raise UserError(
            f"guard {guard!r} has {rows.numel()} tokens, fewer than two rows of training.sequence_length {length}; use "
            "a longer text or self-generated"
        )
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def _most(device: str) -> int:
    return MOST_ROWS[device.partition(":")[0]]
