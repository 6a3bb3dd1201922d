"""Quantisers of a linear's input: 8 bits, the range taken from each token or, one for the tensor, from an observer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import (
    affine_parameters,
    fake_quantize,
    fake_quantize_tokens,
    straight_through,
)
from edgequant.quantization.arithmetic.learned_steps import fake_quantize_learned_range, rounded_straight_through
from edgequant.quantization.calibration import ObserverName
from edgequant.quantization.layers.learned import LearnedParameters
from edgequant.quantization.layers.observers import make_observer
from edgequant.quantization.scheme import ActivationSpec

INT8 = (-128, 127)


class Phase(nn.Module):
    """What input quantisers do at present; linears of one parent share it.

    Two flags, each held twice: as a Python value for code that runs line by line, and as a tensor for compiled code,
    which would be translated anew for each Python value that it reads.

    Attributes:
        simulating: quantise inputs; off during the first steps of training, so that weights settle first.
        observing: let static ranges follow the data; off late in training, at calibration's end, and in evaluation.
    """

    simulates: Tensor
    observes: Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.simulating = self.observing = True
        for name in ("simulates", "observes"):
            self.register_buffer(name, torch.ones((), dtype=torch.bool, device=device), persistent=False)

    @torch.no_grad()
    def set(self, *, simulating: bool, observing: bool) -> None:
        """Say what quantisers do from here on."""
        if simulating != self.simulating:
            self.simulates.fill_(simulating)
        if observing != self.observing:
            self.observes.fill_(observing)
        self.simulating, self.observing = simulating, observing

    @contextlib.contextmanager
    def recomputation(self) -> Iterator[None]:
        """Inside, a forward pass is repeated for its gradients: what it sees was observed already."""
        simulating, observing = self.simulating, self.observing
        self.set(simulating=simulating, observing=False)
        try:
            yield
        finally:
            self.set(simulating=simulating, observing=observing)


class InputQuantizer(nn.Module):
    """Simulates 8-bit inputs [..., in]. `mode` is the scheme's word for where their range comes from."""

    mode: ClassVar[Literal["dynamic", "static"]]

    def __init__(self, phase: Phase | None = None) -> None:
        super().__init__()
        self.phase = Phase() if phase is None else phase

    @property
    def needs_range(self) -> bool:
        """Whether a range has to be observed before inputs can be quantised."""
        return self.mode == "static"

    @property
    def has_range(self) -> bool:
        """Whether inputs can be quantised: a range was observed, or none is needed."""
        return True

    def set_phase(self, *, enabled: bool, observing: bool) -> None:
        """Say whether to simulate from here on (delayed activation quantisation), and whether static ranges move."""
        self.phase.set(simulating=enabled, observing=observing)

    def observe(self, inputs: Tensor) -> None:
        """Widen a static range by inputs; nothing where there is none."""


class DynamicInputQuantizer(InputQuantizer):
    """Simulates 8-bit inputs whose range is taken from each token.

    Linears that share an input (query, key and value; gate and up) come one after the other and share the result.
    """

    mode = "dynamic"
    _latest: ClassVar[tuple[Tensor, int, bool, Tensor] | None] = None

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # compiled code shares what is equal by itself
            values = inputs.detach()
            simulated = torch.where(self.phase.simulates, fake_quantize_tokens(values, INT8), values)
            return straight_through(inputs, simulated)
        if not self.phase.simulating:
            return inputs
        if inputs.is_inference():  # has no version to tell a change by
            return fake_quantize_tokens(inputs, INT8)
        kept = DynamicInputQuantizer._latest
        with_gradient = torch.is_grad_enabled()
        if kept is not None and kept[0] is inputs and kept[1:3] == (inputs._version, with_gradient):
            return kept[3]
        simulated = fake_quantize_tokens(inputs, INT8)
        DynamicInputQuantizer._latest = (inputs, inputs._version, with_gradient, simulated)
        return simulated

    @classmethod
    def forget(cls) -> None:
        """Let go of the input last seen, and of the graph behind it."""
        cls._latest = None


class LearnedRange(LearnedParameters):
    """One range of 8 bits whose scale and zero point are trained (LSQ+, Bhalgat et al. 2020, arXiv 2004.09576).

    Args:
        scale, zero_point: what training starts from, float32 scalars.
    """

    initial_scale: Tensor
    relative_scale: nn.Parameter
    zero_point: nn.Parameter

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("initial_scale", scale.detach().clone())
        self.learn("relative_scale", torch.ones_like(scale))
        self.learn("zero_point", zero_point.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, two float32 scalars; the zero point is integral."""
        return self.initial_scale * self.relative_scale, rounded_straight_through(self.zero_point).clamp(*INT8)


class StaticInputQuantizer(InputQuantizer):
    """Simulates 8-bit inputs with one range for the tensor.

    It is seen by an observer (Jacob et al. 2017, section 3.1), or learned from there on. Linears that see the same
    input share what they learn: the input of query, key and value is quantised once where the model runs.
    """

    mode = "static"

    def __init__(self, observer: ObserverName, phase: Phase | None = None) -> None:
        super().__init__(phase)
        self.observer = make_observer(observer)
        self._seen = False
        self._learned: list[LearnedRange] = []  # in a list: another quantiser may own it

    def observe(self, inputs: Tensor) -> None:
        self.observer.observe(inputs)
        self._seen = True

    def learn(self, shared: LearnedRange | None = None) -> LearnedRange:
        """Train the range from where it is, or with another quantiser's; gives what is trained."""
        if shared is None:
            shared = LearnedRange(*self.parameters_of_range())
            self.add_module("learned_range", shared)
        self._learned = [shared]
        return shared

    @property
    def has_range(self) -> bool:
        """Whether anything was observed; asked of the device at most until it is true, since asking waits for it."""
        if not self._seen:
            self._seen = bool(self.observer.batches > 0)
        return self._seen

    def parameters_of_range(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, two float32 scalars; the zero point is integral.

        Raises:
            UserError: nothing was observed yet.
        """
        if not self.has_range:
            raise UserError("static activation ranges were never observed; run calibration or training batches first")
        if self._learned:
            return self._learned[0]()  # type: ignore[no-any-return]
        return affine_parameters(*self.observer.range(), INT8)

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._compiled(inputs)
        if self._learned:
            if self.phase.simulating:
                return self._by_learned(inputs)
            shared_step = torch.distributed.is_available() and torch.distributed.is_initialized()
            return self._compiled(inputs) if shared_step else inputs  # DDP wants every parameter in every step
        if self.phase.observing:
            self.observe(inputs)
        if not self.phase.simulating or not self.has_range:
            return inputs
        scale, zero_point = self.parameters_of_range()
        return fake_quantize(inputs, scale, zero_point, INT8)

    def _by_learned(self, inputs: Tensor) -> Tensor:
        scale, zero_point = self._learned[0]()
        return fake_quantize_learned_range(inputs, scale, zero_point, INT8)

    def _compiled(self, inputs: Tensor) -> Tensor:
        if self._learned:
            return torch.where(self.phase.simulates, self._by_learned(inputs), inputs)
        self.observer.observe(inputs, counted=self.phase.observes)
        scale, zero_point = affine_parameters(*self.observer.range(), INT8)
        simulates = self.phase.simulates & (self.observer.batches > 0)
        return torch.where(simulates, fake_quantize(inputs, scale, zero_point, INT8), inputs)


def learn_together(quantizers: Iterable[tuple[str, InputQuantizer]]) -> None:
    """Train static ranges from here on; those of one parent that were seen alike, since their input is one, share it.

    Args:
        quantizers: each with its parent's name; what has no static range stays as it is.

    Raises:
        UserError: a range was never observed.
    """
    shared: dict[tuple[str, float, float], LearnedRange] = {}
    for parent, quantizer in quantizers:
        if isinstance(quantizer, StaticInputQuantizer):
            scale, zero_point = quantizer.parameters_of_range()
            seen = (parent, float(scale), float(zero_point))
            shared[seen] = quantizer.learn(shared.get(seen))


def make_input_quantizer(spec: ActivationSpec | None, observer: ObserverName, phase: Phase) -> InputQuantizer | None:
    """The quantiser of a linear's input, on the phase's device, or None where inputs stay as they are."""
    if spec is None:
        return None
    if spec.mode == "dynamic":
        return DynamicInputQuantizer(phase)
    return StaticInputQuantizer(observer, phase).to(phase.simulates.device)
