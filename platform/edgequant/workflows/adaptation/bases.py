"""What lies under the adapters, decided and checked before anything is loaded. Light: no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgequant.errors import UserError
from edgequant.models.adapters.quantized_base import BITSANDBYTES
from edgequant.workflows.validate import stated_scheme

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource
    from edgequant.training.settings import LoraSettings

Base = Literal["auto", "float", "bnb-int8", "bnb-nf4", "bnb-fp4"]
FLOAT, INTEGERS = "float", "integers"


def lasting_name(source: ModelSource, given: str) -> str:
    """A model as others find it later, wherever they are: a path is whole, another name as the user gave it."""
    is_here = source.kind in ("folder", "gguf") and not given.startswith(("models:/", "runs:/"))
    return source.location if is_here else given


def check_base(
    source: ModelSource, base: str, lora: LoraSettings, *, apart: bool, register: bool, baseline: str | None = None
) -> str:
    """Settle what the adapters are put on: `float`, `integers` of one of our checkpoints, or bitsandbytes' scheme.

    Raises:
        UserError: settings that contradict each other or the model; names both.
    """
    scheme = stated_scheme(source)
    if scheme is not None and base != "auto":
        raise UserError(
            f"base must be auto for {source.name!r}, whose weights are integers already ({scheme.name}), got {base}; "
            "leave base out, or name the floating-point model"
        )
    found = INTEGERS if scheme is not None else FLOAT if base == "auto" else base
    if found in BITSANDBYTES and register:
        raise UserError(
            f"register true needs base auto, got base {base}: adapters over bitsandbytes' weights are not merged into "
            "a model that could be registered; use base auto, or register false"
        )
    if apart and (register or found in BITSANDBYTES):
        why = (
            "adapters that stay apart are no model to register" if register else f"base {base} keeps them apart anyway"
        )
        raise UserError(f"apart must be false, got true: {why}; leave apart out{' or set register false' * register}")
    if apart and found == FLOAT:
        raise UserError(
            f"apart must be false for {source.name!r} in floating point, whose adapter is written beside the merged "
            "model anyway, got true; leave it out"
        )
    if baseline is not None and (apart or found != INTEGERS):
        raise UserError(
            f"baseline must be left out, got {baseline!r}: it names the floating-point model of a checkpoint that is "
            "adapted within its integers, with apart false"
        )
    _check_lora(source, found, lora, apart=apart)
    return found


def _check_lora(source: ModelSource, base: str, lora: LoraSettings, *, apart: bool) -> None:
    beside = base in BITSANDBYTES or apart
    if lora.rank == 0 and beside:
        raise UserError(
            f"lora.rank must be at least 1, such as 16, over base {base} with adapters apart, got 0, which trains a "
            "model's own weights"
        )
    if lora.loftq_from is not None and base == FLOAT:
        raise UserError(
            f"lora.loftq_from must be left out for {source.name!r} in floating point, which has no rounding to make "
            f"good, got {lora.loftq_from!r}; use it with --base bnb-nf4 or a checkpoint of `edgequant ptq`"
        )
    if lora.loftq_from is not None and lora.rank == 0:
        raise UserError("lora.loftq_from needs lora.rank of at least 1, got 0; set lora.rank 16, or leave it out")
    if base == INTEGERS and not beside and lora.dropout:
        raise UserError(
            f"lora.dropout must be 0 where adapters end in integers, got {lora.dropout}: they have no input of their "
            "own; set it to 0, or apart to true"
        )
