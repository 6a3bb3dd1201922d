"""Post-training quantisation: one verb, `quantize`, over methods that choose the integers without training.

scheme = parse_scheme("w4-g64")
errors = quantize(model, scheme, calibration=batches, method="awq+gptq")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from edgequant import models
from edgequant.errors import UserError
from edgequant.models.same_function.comparison import PROBE_TOKENS
from edgequant.progress import Progress
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.layers.convert import (
    calibrate,
    convert,
    has_static_ranges,
    prepare,
    set_phase,
)
from edgequant.quantization.layers.fake_quantized import (
    FakeQuantizedLayer,
    fake_quantized_layers,
    fake_quantized_linears,
)
from edgequant.quantization.layers.fixed_weights import IdentityQuantizer, fix_codes
from edgequant.quantization.layers.targets import Targets
from edgequant.quantization.ptq.automatic import Guard, choose_automatically
from edgequant.quantization.ptq.block_checkpoints import BlockCheckpoints, fingerprint
from edgequant.quantization.ptq.block_stream import BlockStream
from edgequant.quantization.ptq.calibrated_block import CalibratedBlock, Step, relative_error
from edgequant.quantization.ptq.end_to_end import QuantizedModel, tie_heads
from edgequant.quantization.ptq.methods import AUTO, Combination, parse_method
from edgequant.quantization.ptq.rounding import HessianRounding, Rounding
from edgequant.quantization.ptq.scaling.equivalent_scaling import keeps_output
from edgequant.quantization.ptq.second_moments import SecondMoment, SecondMomentSum
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.ptq.tied_embedding import moment_of_both_uses
from edgequant.quantization.scheme import Scheme

ErrorRow = dict[str, Any]


def quantize(
    model: nn.Module,
    scheme: Scheme,
    *,
    calibration: list[Tensor] | None = None,
    method: str = "rtn",
    settings: PtqSettings = PtqSettings(),
    calibration_settings: CalibrationSettings = CalibrationSettings(),
    work_folder: Path | None = None,
) -> list[ErrorRow]:
    """Quantise a model in place to integer layers.

    Args:
        model: floating-point causal language model in evaluation mode, on the device that is to do the work.
        scheme: what to quantise and how; backend `edgequant`.
        calibration: token batches [batch, length] without padding; methods other than `rtn` and `mse_clip` need them
            (`PtqMethod.needs_calibration`), as do static activation ranges.
        method: one of `ptq.methods.METHODS` or of an installed package's, or a combination such as
            `awq+gptq+signround`; see `ptq.methods.parse_method`. `auto`: `ptq.methods.best_method`, on a CPU with as
            much of the calibration text as takes about a minute; `rtn` where a part of the text that the method did
            not see is predicted better so.
        settings: of the methods.
        calibration_settings: batches, precision and observer; how many samples there are is up to `calibration`.
        work_folder: finished decoder blocks are kept here, and an interrupted call with the same model, scheme, method,
            settings and calibration goes on behind them.

    Returns:
        One row per layer and decoder block: `layer`, `kind`, `bits`, relative squared errors `weight_error` and, where
        the method goes through activations, `output_error`. Where a method of stage `tune` worked on the whole model,
        another of kind `model` with what it tells: `divergence_before` and `divergence`, nats per token.

    Raises:
        UserError: unknown method, missing calibration, or a layer that cannot be quantised as asked, by name.
    """
    errors = choose_integers(model, scheme, calibration or [], method, settings, calibration_settings, work_folder)
    convert(model, calibration[0][:1, :PROBE_TOKENS] if calibration else None)
    return errors


@torch.no_grad()
def choose_integers(
    model: nn.Module,
    scheme: Scheme,
    calibration: list[Tensor],
    method: str = "rtn",
    settings: PtqSettings = PtqSettings(),
    calibration_settings: CalibrationSettings = CalibrationSettings(),
    work_folder: Path | None = None,
) -> list[ErrorRow]:
    """`quantize` up to its last step: layers are fake-quantised, each with a `FixedCodesQuantizer` for `convert`."""
    held_out: list[Tensor] = []
    if method == AUTO:
        method, calibration, held_out = choose_automatically(model, scheme, calibration)
    chosen, batches = parse_method(method), _batches(calibration, calibration_settings.batch_size)
    if chosen.needs_calibration and not batches:
        raise UserError(f"PTQ method {method} decides by activations; give calibration text")
    what = (scheme, chosen, settings, calibration_settings)
    run = fingerprint(model, batches, *what) if work_folder is not None else ""
    targets = prepare(model, scheme, observer=calibration_settings.observer)
    if has_static_ranges(model) and not batches:
        raise UserError(f"scheme {scheme.name} has static activation ranges; give calibration text")
    steps = _steps(chosen, settings)
    guard = Guard(model, held_out, calibration_settings.precision) if held_out else None
    if chosen.needs_calibration or (batches and steps.round.uses_inputs):
        states = BlockCheckpoints(work_folder, run, with_weights=chosen.scale is not None)
        errors = _Calibrated(model, targets, chosen.name, steps, batches, calibration_settings, states).quantize()
    else:
        errors = [_round(name, layer, steps.round) for name, layer in _layers(model).items()]
        if has_static_ranges(model):
            calibrate(model, batches)
    tie_heads(model)
    return weight_errors(model) if guard is not None and guard.overrules(method) else errors


def _batches(calibration: list[Tensor], size: int) -> list[Tensor]:
    """Sequences of equal length in batches of `size`, whatever they came in."""
    if len({batch.shape[1] for batch in calibration}) == 1:
        return list(torch.cat(calibration).split(size))
    return [part for batch in calibration for part in batch.split(size)]


def _layers(model: nn.Module) -> dict[str, FakeQuantizedLayer]:
    """All layers that have integers of their own."""
    return {name: layer for name, layer in fake_quantized_layers(model).items() if not layer.is_tied}


class Tuning(Protocol):
    """What works on the whole model once every layer has integers; returns numbers for the error table."""

    def apply(self, quantized: QuantizedModel) -> dict[str, float]: ...


class _Steps(NamedTuple):
    """What is done to each block, in this order, and to the model at the end."""

    scale: Step | None
    round: Rounding
    learn: Step | None
    tune: Tuning | None


def _steps(chosen: Combination, settings: PtqSettings) -> _Steps:
    rounding = chosen.round.make(settings)
    if not isinstance(rounding, Rounding):
        found = type(rounding).__name__
        raise UserError(f"PTQ method {chosen.round.name} of stage round must make a rounding.Rounding, got {found}")
    others = (chosen.scale, chosen.learn, chosen.tune)
    scale, learn, tune = (None if part is None else part.make(settings) for part in others)
    return _Steps(scale, rounding, learn, tune)


def _round(name: str, layer: FakeQuantizedLayer, rounding: Rounding) -> ErrorRow:
    """Choose a layer's integers from its weight alone."""
    fix_codes(layer, rounding.quantized(layer.weight.detach(), layer.spec))
    return _weight_error(name, layer)


@torch.no_grad()
def weight_errors(model: nn.Module) -> list[ErrorRow]:
    """Of every fake-quantised layer: how far rounding takes its weight from what was trained, as `quantize` says it."""
    return [_weight_error(name, layer) for name, layer in _layers(model).items()]


def _weight_error(name: str, layer: FakeQuantizedLayer) -> ErrorRow:
    weight = layer.real_weight
    error = relative_error(layer.quantizer(weight), weight)
    return {"layer": name, "kind": layer.kind, "bits": layer.spec.bits, "weight_error": error}


class _Calibrated:
    """Goes through the decoder blocks, each behind its quantised predecessors."""

    def __init__(
        self,
        model: nn.Module,
        targets: Targets,
        method: str,
        steps: _Steps,
        batches: list[Tensor],
        settings: CalibrationSettings,
        states: BlockCheckpoints,
    ) -> None:
        self.model, self.targets, self.method, self.steps, self.states = model, targets, method, steps, states
        for layer in _layers(model).values():
            layer.quantizer = IdentityQuantizer(layer.spec)
        set_phase(model, quantize_inputs=False, observe=False)
        precision = models.pick_dtype(settings.precision, str(next(model.parameters()).device))
        self.stream = BlockStream(model, batches, bfloat16=precision == "bfloat16", offload=settings.offload)

    def quantize(self) -> list[ErrorRow]:
        """Choose every layer's integers; returns the error table."""
        floating = self.stream.first_inputs()
        errors = [_round(name, layer, self.steps.round) for name, layer in self._outside().items()]
        errors += self._shared_embedding()
        hidden = self.stream.first_inputs()  # behind a quantised embedding
        shown = Progress(len(self.stream.blocks), self.method, "block")
        for index, name in enumerate(self.stream.blocks):
            block = CalibratedBlock(self.stream, index, name, hidden, floating)
            if not self._finds_targets or self.states.holds(index):
                _ = block.targets
            rows = self.states.restore(index, block.module)
            if rows is None:
                self._choose(block)
            block.set_phase(quantize_inputs=True, observe=False)
            if rows is None:
                hidden, rows = block.outputs_and_errors()
                self.states.save(index, block.module, rows)
            else:
                hidden = [self.stream.keep(output) for output in block.outputs()]
            errors += rows
            shown.say(f"error {rows[-1]['output_error']:.4f}")
            shown.update()
            floating = block.targets
        shown.close()
        errors += self._head(hidden)
        return errors if self.steps.tune is None else self._tuned(errors, floating)

    def _tuned(self, errors: list[ErrorRow], floating: list[Tensor]) -> list[ErrorRow]:
        """Errors of weights are told as they are at the end, those of outputs as they were before."""
        assert self.steps.tune is not None
        set_phase(self.model, quantize_inputs=True, observe=False)
        found = self.steps.tune.apply(QuantizedModel(self.stream, floating, self.targets.head))
        weights = {row["layer"]: row for row in weight_errors(self.model)}
        renewed = [row | weights[row["layer"]] if row["layer"] in weights else row for row in errors]
        return [*renewed, {"layer": self.method, "kind": "model", **found}]

    def _choose(self, block: CalibratedBlock) -> None:
        if self.steps.scale is not None:
            with keeps_output(block):
                self.steps.scale.apply(block)
        self.steps.round.apply(block)
        block.observe_ranges()
        block.set_phase(quantize_inputs=True, observe=False)
        if self.steps.learn is not None:
            self.steps.learn.apply(block)

    @property
    def _finds_targets(self) -> bool:
        """Whether a block's rounding looks at the floating-point block itself, before anything changes that."""
        rounding = self.steps.round
        if not isinstance(rounding, HessianRounding) or type(rounding).apply is not HessianRounding.apply:
            return False  # another package's may change layers before it looks
        return self.steps.scale is None and rounding.follows_floating

    def _outside(self) -> dict[str, FakeQuantizedLayer]:
        """Layers that are rounded by their weights alone, since their inputs are not part of the stream."""
        inside = tuple(f"{name}." for name in self.stream.blocks)
        outside = {name: layer for name, layer in _layers(self.model).items() if not name.startswith(inside)}
        for name, layer in outside.items():
            if layer.needs_range and name != self.targets.head:
                raise UserError(
                    f"{name} lies outside the decoder blocks, so method {self.method} cannot observe its static "
                    "activation range; use method rtn or mse_clip, or a scheme without a8-static"
                )
        by_inputs = (self.targets.head, self.targets.embedding) if self.targets.tied else (self.targets.head,)
        left = () if self.steps.round.uses_inputs else by_inputs
        return {name: layer for name, layer in outside.items() if name not in by_inputs or name in left}

    def _shared_embedding(self) -> list[ErrorRow]:
        """Integers of an embedding that is the head too, by what both do in the floating-point model."""
        if not (self.targets.tied and self.targets.embedding and self.targets.head and self.steps.round.uses_inputs):
            return []
        layer = fake_quantized_layers(self.model)[self.targets.embedding]
        head = fake_quantized_linears(self.model)[self.targets.head]
        self.steps.round.quantize_layers({self.targets.embedding: layer}, moment_of_both_uses(self.stream, layer, head))
        return [_weight_error(self.targets.embedding, layer)]

    def _head(self, hidden: list[Tensor]) -> list[ErrorRow]:
        """The output head: its integers, where its inputs decide on them, and its static input range."""
        if self.targets.head is None:
            return []
        head = fake_quantized_linears(self.model)[self.targets.head]
        if head.input_quantizer is not None:
            for inputs in self.stream.head_inputs(hidden, head):
                head.input_quantizer.observe(inputs)
        if self.targets.tied or not self.steps.round.uses_inputs:
            return []
        self.steps.round.quantize_layers({self.targets.head: head}, self._moment(hidden, head))
        return [_weight_error(self.targets.head, head)]

    def _moment(self, hidden: list[Tensor], head: FakeQuantizedLayer) -> SecondMoment:
        """Of what the head is given behind a last block's outputs."""
        total = SecondMomentSum()
        for inputs in self.stream.head_inputs(hidden, head):
            total.add(inputs.reshape(-1, inputs.shape[-1]).float())
        return total.moment()
