"""`CalibratedBlock`: one decoder block with its calibration inputs, which every calibrated PTQ method works on."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgequant.quantization.layers.convert import check_activations
from edgequant.quantization.layers.fake_quantized import FakeQuantizedLinear, fake_quantized_linears
from edgequant.quantization.ptq.block_stream import BlockStream, capture_inputs, run_until_captured
from edgequant.quantization.ptq.error_feedback import Drift
from edgequant.quantization.ptq.second_moments import SecondMomentSum

ERROR_TOKENS = 512  # of the first batch: enough for a table
KEPT_ON_DEVICE = 1 << 30  # bytes of a block's inner inputs; what is beyond waits in main memory


class Step(Protocol):
    """One PTQ algorithm: changes a block in place."""

    def apply(self, block: CalibratedBlock) -> None: ...


class Trace:
    """Which layers read the same tensor, and which module made it, in the order of one forward pass."""

    def __init__(self, linears: Container[str]) -> None:
        self.linears = linears
        self.consumers: dict[int, list[str]] = {}
        self.producers: dict[int, str] = {}
        self.order: list[str] = []
        self._alive: list[Tensor] = []  # an id must not be used again

    def register(self, name: str, module: nn.Module) -> RemovableHandle:
        def called(_module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if not isinstance(output, Tensor):
                return
            if name in self.linears:
                self._alive.append(inputs[0])
                self.consumers.setdefault(id(inputs[0]), []).append(name)
            self._alive.append(output)
            self.producers.setdefault(id(output), name)
            self.order.append(name)

        return module.register_forward_hook(called)


@dataclass
class Group:
    """Linears of a block that read the same input; `producer` names the module that produced it, where there is one."""

    names: list[str]
    producer: str | None


class CalibratedBlock:
    """A decoder block in the middle of a stream.

    Attributes:
        name: of the block in the model.
        module: the block itself, its linears fake-quantised.
        inputs: what the block is given behind its quantised predecessors, for each batch.
        floating: what the floating-point block was given behind floating-point predecessors, for each batch.
        rounded_from: by layer, the weight [out, in] that its integers were rounded from, where that is not its own.
    """

    def __init__(
        self, stream: BlockStream, index: int, name: str, inputs: list[Tensor], floating: list[Tensor]
    ) -> None:
        self.stream, self.index, self.name = stream, index, name
        self.module = stream.blocks[name]
        self.inputs, self.floating = inputs, floating
        self.rounded_from: dict[str, Tensor] = {}

    @property
    def layers(self) -> dict[str, FakeQuantizedLinear]:
        """The block's quantised linears by their names in the model."""
        return {f"{self.name}.{name}": layer for name, layer in fake_quantized_linears(self.module).items()}

    @cached_property
    def targets(self) -> list[Tensor]:
        """What the floating-point block gave behind floating-point predecessors, for each batch; to be looked at, or
        found by `floating_inputs`, before its layers change."""
        return [self._target(batch) for batch in range(len(self.floating))]

    @torch.no_grad()
    def _target(self, batch: int) -> Tensor:
        states = self.stream.run(self.index, batch, self.stream.fetch(self.floating[batch]))
        check_activations(f"the output of {self.name}", states)
        return self.stream.keep(states)

    def run(self, batch: int) -> Tensor:
        """The block's output for a calibration batch, as its layers are at present."""
        return self.stream.run(self.index, batch, self.stream.fetch(self.inputs[batch]))

    def outputs(self) -> Iterator[Tensor]:
        """The block's outputs for all batches, without gradients."""
        for batch in range(len(self.inputs)):
            with torch.no_grad():
                yield self.run(batch)

    @torch.no_grad()
    def probe(self) -> Tensor:
        """The block's output for the first batch in full precision, to see whether a change keeps its function."""
        enabled, self.stream.bfloat16 = self.stream.bfloat16, False
        try:
            return self.run(0)
        finally:
            self.stream.bfloat16 = enabled

    @cached_property
    def groups(self) -> list[Group]:
        """The linears grouped by shared input, in the order in which the block computes them."""
        trace = Trace(fake_quantized_linears(self.module))
        handles = [trace.register(name, module) for name, module in self.module.named_modules() if name]
        try:
            with torch.no_grad():
                self.run(0)
        finally:
            for handle in handles:
                handle.remove()
        self.order = [f"{self.name}.{name}" for name in trace.order]
        return [
            Group([f"{self.name}.{name}" for name in consumers], self._full(trace.producers.get(tensor)))
            for tensor, consumers in trace.consumers.items()
        ]

    def _full(self, name: str | None) -> str | None:
        return None if name is None else f"{self.name}.{name}"

    @torch.no_grad()
    def capture_inputs(self, names: list[str], see: Callable[[str, Tensor], None], batches: int | None = None) -> None:
        """Show `see(name, inputs [tokens, in] float32)` the inputs of the named layers, in all or the first batches."""
        by_module = {id(self.layers[name]): name for name in names}

        def flat(module: nn.Module, inputs: Tensor) -> None:
            with self.stream.full_precision():  # autocast would sum products in bfloat16
                see(by_module[id(module)], _rows(inputs))

        with capture_inputs([self.layers[name] for name in names], flat, stop=True):
            for batch in range(min(len(self.inputs), batches or len(self.inputs))):
                run_until_captured(lambda batch=batch: self.run(batch))  # type: ignore[misc]

    def second_moments(self, names: list[str]) -> dict[str, SecondMomentSum]:
        """For each named layer x x^T summed over its inputs as they are at present."""
        sums = {name: SecondMomentSum() for name in names}
        self.capture_inputs(names, lambda name, inputs: sums[name].add(inputs))
        return sums

    @torch.no_grad()
    def floating_inputs(self, names: list[str]) -> dict[str, list[Tensor]]:
        """What the named layers, which read different inputs, are given behind floating-point predecessors, for each
        batch [batch, length, in]; to be called while the block's own layers are in floating point too. The pass that
        sees them finds `targets` as well."""
        by_module = {id(self.layers[name]): name for name in names}
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        held = 0

        def see(module: nn.Module, inputs: Tensor) -> None:
            nonlocal held
            held += inputs.nbytes
            kept = self.stream.keep(inputs) if held <= KEPT_ON_DEVICE else inputs.detach().cpu()
            found[by_module[id(module)]].append(kept)

        known = "targets" in self.__dict__
        with capture_inputs([self.layers[name] for name in names], see, stop=known):
            if not known:
                _ = self.targets
                return found
            for batch, states in enumerate(self.floating):
                run_until_captured(partial(self.stream.run, self.index, batch, self.stream.fetch(states)))
        return found

    def drift(self, name: str, floating: list[Tensor]) -> Drift:
        """What has become of the named layer's inputs, which `floating_inputs` were these."""
        found, layer = Drift(), self.layers[name]
        for batch, aim in enumerate(floating):
            found.add(_input_of(layer, partial(self.run, batch)), _rows(self.stream.fetch(aim)))
        return found

    def set_phase(self, *, quantize_inputs: bool, observe: bool) -> None:
        """As `convert.set_phase`, for this block."""
        for layer in self.layers.values():
            if layer.input_quantizer is not None:
                layer.input_quantizer.set_phase(enabled=quantize_inputs, observing=observe)

    def observe_ranges(self) -> None:
        """Let static input quantisers see the calibration inputs behind the block's quantised weights."""
        if any(layer.needs_range for layer in self.layers.values()):
            self.set_phase(quantize_inputs=False, observe=True)
            for _ in self.outputs():
                pass

    @torch.no_grad()
    def outputs_and_errors(self) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The quantised block's outputs for all batches, kept, and relative squared errors: of each layer's weight and,
        on some of the text, its output; of the block's output, against the floating-point model, so that it holds what
        all blocks before have added."""
        layers = self.layers
        names = {id(layer): name for name, layer in layers.items()}
        sums = {name: torch.zeros(2, device=self.stream.device) for name in layers}
        chosen = {name: layer.quantizer(layer.weight) for name, layer in layers.items()}

        def add(module: nn.Module, inputs: Tensor) -> None:
            name = names[id(module)]
            weight = layers[name].weight
            with self.stream.full_precision():
                rows = _rows(inputs)
                rows = rows[:: max(1, -(-len(rows) // ERROR_TOKENS))]
                wrong, right = rows @ (chosen[name] - weight).float().t(), rows @ weight.float().t()
                sums[name] += torch.stack([wrong.square().sum(), right.square().sum()])

        remaining = self.outputs()
        with capture_inputs(list(layers.values()), add):
            outputs = [self.stream.keep(next(remaining))]
        outputs += [self.stream.keep(output) for output in remaining]
        rows = [
            {
                "layer": name,
                "kind": "linear",
                "bits": layer.spec.bits,
                "weight_error": relative_error(chosen[name], layer.weight),
                "output_error": float(sums[name][0] / sums[name][1].clamp(min=1e-30)),
            }
            for name, layer in layers.items()
        ]
        return outputs, [*rows, {"layer": self.name, "kind": "block", "output_error": self._block_error(outputs)}]

    def _block_error(self, outputs: list[Tensor]) -> float:
        """Squared error relative to the variance of the target."""
        wrong = right = 0.0
        for output, target in zip(outputs, self.targets, strict=True):
            aim = self.stream.fetch(target).float()
            wrong += float((self.stream.fetch(output).float() - aim).square().sum())
            right += float((aim - aim.mean()).square().sum())
        return wrong / max(right, 1e-30)


@torch.no_grad()
def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """Squared distance over squared length."""
    return float((approximate - exact).square().sum() / exact.square().sum().clamp(min=1e-30))


@torch.no_grad()
def _input_of(layer: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a layer is given in a pass, [tokens, in] float32; the pass ends there."""
    seen: list[Tensor] = []
    with capture_inputs([layer], lambda _layer, inputs: seen.append(inputs), stop=True):
        run_until_captured(run)
    return _rows(seen[0])


def _rows(inputs: Tensor) -> Tensor:
    return inputs.reshape(-1, inputs.shape[-1]).float()
