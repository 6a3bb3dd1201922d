"""PTQ methods: one entry each, in one tuple, beside those that installed packages add. Light: factories import torch.

A method of a package of its own is one file and an entry point in the group `edgequant.ptq_methods`:

    from edgequant.quantization.ptq.methods import PtqMethod

    def make(settings):
        from edgequant.quantization.arithmetic.affine import quantize_weight
        from edgequant.quantization.ptq.rounding import Rounding

        class Clipped(Rounding):
            def quantized(self, weight, spec):
                bound = 3 * weight.std(dim=1, keepdim=True)
                return quantize_weight(weight.clamp(-bound, bound), spec)

        return Clipped()

    METHOD = PtqMethod(name="three_sigma", stage="round", description="clips outliers, then to nearest", make=make)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgequant.errors import UserError
from edgequant.extensions import PTQ_METHODS, extensions

if TYPE_CHECKING:
    from edgequant.quantization.ptq.settings import PtqSettings
    from edgequant.quantization.scheme import Scheme

Stage = Literal["scale", "round", "learn", "tune"]
STAGES: tuple[Stage, ...] = get_args(Stage)  # in the order in which they change a model
AUTO = "auto"
MOST_TUNED = 3_000_000_000  # parameters of a model whose scales are trained end to end on a GPU
MOST_BY_GPTQ_ON_CPU = 200_000_000
TOKENS_ON_CPU = 600_000_000_000  # calibration tokens times parameters that two cores go through in a minute
RENAMED = {"mse": "mse_clip", "block": "signround"}


@dataclass(frozen=True, kw_only=True)
class PtqMethod:
    """One PTQ method.

    Attributes:
        name: as users write it: small letters, digits, `_` and `-`.
        stage: what it does to a decoder block: `scale` moves difficulty between a layer's weight and its input, `round`
            chooses the integers of each layer, `learn` improves them against the block's output; `tune` works on the
            whole model once all blocks have integers.
        description: what `--help` says of it, in a line.
        make: builds, from the settings, the step that works on blocks (`calibrated_block.Step`: `apply(block)`); of
            stage `round` a `rounding.Rounding`, which rounds layers outside the blocks too.
        needs_calibration: whether it is of no use without calibration text. False: of stage `round` alone, where
            `Rounding.quantized` chooses integers from the weight.
        rounds_with: of the other stages: the method that rounds where the user names none.
    """

    name: str
    stage: Stage
    description: str
    make: Callable[[PtqSettings], Any] = field(repr=False, compare=False)
    needs_calibration: bool = False
    rounds_with: str = "mse_clip"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise UserError(f"PTQ method name {self.name!r} must be small letters, digits, _ and -")
        if self.stage not in STAGES:
            raise UserError(f"stage of PTQ method {self.name} must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if self.stage != "round" and not self.needs_calibration:
            raise UserError(f"PTQ method {self.name} of stage {self.stage} works on inputs; set needs_calibration=True")


def _rtn(_settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.rounding import RoundToNearest

    return RoundToNearest()


def _mse_clip(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.rounding import Clipping

    return Clipping(settings)


def _gptq(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.rounding import Gptq

    return Gptq(settings)


def _awq(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.scaling.awq import ActivationAwareScaling

    return ActivationAwareScaling(settings.alphas)


def _smoothquant(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.scaling.smoothquant import Smoothing

    return Smoothing(settings.smoothing_strength)


def _signround(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.block_learning import BlockRounding

    return BlockRounding(settings)


def _block_ap(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.block_learning import BlockAp

    return BlockAp(settings)


def _e2e_qp(settings: PtqSettings) -> Any:
    from edgequant.quantization.ptq.end_to_end import EndToEnd

    return EndToEnd(settings)


METHODS = (
    PtqMethod(name="rtn", stage="round", description="to the nearest integer of each group's range", make=_rtn),
    PtqMethod(
        name="mse_clip", stage="round", make=_mse_clip,
        description="the range of each group with the least squared error, weighted by the inputs where there is text",
    ),
    PtqMethod(
        name="gptq", stage="round", make=_gptq, needs_calibration=True,
        description="column by column, the columns that remain make up for the error",
    ),
    PtqMethod(
        name="awq", stage="scale", make=_awq, needs_calibration=True,
        description="scales weight columns that meet large inputs up, then rounds with mse_clip",
    ),
    PtqMethod(
        name="smoothquant", stage="scale", make=_smoothquant, needs_calibration=True, rounds_with="rtn",
        description="moves outliers from activations into weights, for a8 schemes, then rounds with rtn",
    ),
    PtqMethod(
        name="signround", stage="learn", make=_signround, needs_calibration=True,
        description="from mse_clip on, learns rounding and ranges against each block's output by sign-SGD",
    ),
    PtqMethod(
        name="block_ap", stage="learn", make=_block_ap, needs_calibration=True, rounds_with="gptq",
        description="from gptq on, trains weights, ranges and norms against each block's output by AdamW",
    ),
    PtqMethod(
        name="e2e_qp", stage="tune", make=_e2e_qp, needs_calibration=True, rounds_with="gptq",
        description="trains the scales of all blocks at once, integers fixed, towards the model's own predictions",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Methods in a row: at most one of each stage, and always one that rounds.

    Attributes:
        name: as the user wrote it.
    """

    name: str
    scale: PtqMethod | None
    round: PtqMethod
    learn: PtqMethod | None
    tune: PtqMethod | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether activations decide; `rtn` and `mse_clip` can do without."""
        return any(
            part is not None and part.needs_calibration for part in (self.scale, self.round, self.learn, self.tune)
        )


def methods() -> dict[str, PtqMethod]:
    """Every method by name: edgequant's own, then those of installed packages.

    Raises:
        UserError: an entry point that is not a method, or one whose name is taken.
    """
    known = {method.name: method for method in METHODS}
    for method in extensions(PTQ_METHODS, PtqMethod):
        if method.name in known:
            raise UserError(f"{PTQ_METHODS}: two PTQ methods are called {method.name!r}; rename the package's")
        known[method.name] = method
    return known


def describe_methods() -> str:
    """All methods and how they combine, for help texts."""
    known = methods()
    listed = "; ".join(f"{method.name} ({method.description})" for method in known.values())
    return (
        f"{AUTO}, the best that fits the machine's time; {listed}; or at most one of each stage in a row "
        f"({_stages(known)}), e.g. awq+gptq+signround"
    )


def parse_method(name: str) -> Combination:
    """Read a method, or several joined by `+` in the order scale, round, learn, tune.

    `awq` alone rounds with `mse_clip` (its search over clipping ranges), `smoothquant` alone with `rtn` as in the
    paper, `signround` starts from `mse_clip`, `block_ap` and `e2e_qp` from `gptq`; `awq+gptq`, `gptq+signround`,
    `gptq+block_ap+e2e_qp`, `smoothquant+gptq+signround` do what they say.

    Raises:
        UserError: an unknown part, a part given twice, or an order that makes no sense.
    """
    known = methods()
    parts = [_known(part, known) for part in name.split("+")]
    order = [STAGES.index(part.stage) for part in parts]
    if order != sorted(set(order)):
        raise UserError(
            f"PTQ method {name!r} does not combine: at most one of each stage in this order ({_stages(known)}), e.g. "
            "awq+gptq+signround"
        )
    by_stage = {part.stage: part for part in parts}
    scale, learn, tune = (by_stage.get(stage) for stage in ("scale", "learn", "tune"))
    rounding = by_stage["round"] if "round" in by_stage else _known((learn or parts[0]).rounds_with, known)
    return Combination(name=name, scale=scale, round=rounding, learn=learn, tune=tune)


def best_method(scheme: Scheme, parameters: int, device: str, *, has_text: bool) -> str:
    """The method that fits the machine's time: what `auto` stands for.

    Args:
        scheme: what to quantise and how.
        parameters: of the model.
        device: kind of the device that does the work, `cpu`, `cuda`...
        has_text: whether there is calibration text.
    """
    static = scheme.activation is not None and scheme.activation.mode == "static"
    scaling = "smoothquant+" if static and has_text else ""
    if not has_text or scheme.weight is None or scheme.weight.bits >= 8:
        return f"{scaling}mse_clip"
    if device == "cpu":
        return f"{scaling}{'gptq' if parameters <= MOST_BY_GPTQ_ON_CPU else 'mse_clip'}"
    return f"{scaling}gptq+block_ap{'+e2e_qp' if parameters <= MOST_TUNED else ''}"


def needs_own_text(scheme: Scheme, method: str) -> bool:
    """Whether calibration is to show a method what the model itself writes, as much of it as of other text.

    Fixed ranges, and scales of features that are fitted to them, come from the extremes that calibration shows; a model
    that writes meets others than those of human text. Without such scales wider ranges only coarsen the rounding, and
    where each token has a range of its own human text is the better one.
    """
    static = scheme.activation is not None and scheme.activation.mode == "static"
    return static and (method == AUTO or parse_method(method).scale is not None)


def affordable_tokens(parameters: int, device: str) -> int | None:
    """How many calibration tokens `auto` looks at on this kind of device; None: all."""
    return max(1, TOKENS_ON_CPU // max(1, parameters)) if device == "cpu" else None


def _known(name: str, known: dict[str, PtqMethod]) -> PtqMethod:
    if name in known:
        return known[name]
    if name in RENAMED:
        raise UserError(f"PTQ method {name!r} is now called {RENAMED[name]}")
    near = get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"PTQ method {name!r} is unknown.{hint} Use {', '.join(known)}, or several such as awq+gptq")


def _stages(known: dict[str, PtqMethod]) -> str:
    return ", then ".join(
        f"{stage}: {' or '.join(method.name for method in known.values() if method.stage == stage)}" for stage in STAGES
    )
