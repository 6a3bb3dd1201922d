"""Quantisers of a linear's input: 8 bits, the range taken from each token or, one for the tensor, from an observer."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgequant.errors import UserError
from edgequant.quantization.arithmetic.affine import affine_parameters, fake_quantize, fake_quantize_tokens
from edgequant.quantization.calibration import ObserverName
from edgequant.quantization.layers.observers import make_observer
from edgequant.quantization.scheme import ActivationSpec

INT8 = (-128, 127)


class InputQuantizer(nn.Module):
    """Simulates 8-bit inputs [..., in]. `mode` is the scheme's word for where their range comes from.

    `enabled`: simulate; off during the first steps of training, so that weights settle first (delayed activation
    quantisation).
    """

    mode: ClassVar[Literal["dynamic", "static"]]
    enabled = True

    @property
    def needs_range(self) -> bool:
        """Whether a range has to be observed before inputs can be quantised."""
        return self.mode == "static"

    def set_phase(self, *, enabled: bool, observing: bool) -> None:
        """Say whether to simulate from here on, and whether a static range follows the data."""
        self.enabled = enabled

    def observe(self, inputs: Tensor) -> None:
        """Widen a static range by inputs; nothing where there is none."""


class DynamicInputQuantizer(InputQuantizer):
    """Simulates 8-bit inputs whose range is taken from each token.

    Linears that share an input (query, key and value; gate and up) come one after the other and share the result.
    """

    mode = "dynamic"
    _latest: ClassVar[tuple[Tensor, int, bool, Tensor] | None] = None

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.enabled:
            return inputs
        # Compiled code shares what is equal by itself; a tensor of inference mode has no version to tell a change by.
        if torch.compiler.is_compiling() or inputs.is_inference():
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


class StaticInputQuantizer(InputQuantizer):
    """Simulates 8-bit inputs with one range for the tensor, seen by an observer (Jacob et al. 2017, section 3.1).

    `observing`: let the range follow the data; off late in training, at calibration's end, and in eval.
    """

    mode = "static"

    def __init__(self, observer: ObserverName) -> None:
        super().__init__()
        self.observer = make_observer(observer)
        self.observing = True
        self._seen = False

    def set_phase(self, *, enabled: bool, observing: bool) -> None:
        self.enabled, self.observing = enabled, observing

    def observe(self, inputs: Tensor) -> None:
        self.observer.observe(inputs)
        self._seen = True

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
        low, high = self.observer.range()
        return affine_parameters(low, high, INT8)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.observing:
            self.observe(inputs)
        if not self.enabled or not self.has_range:
            return inputs
        scale, zero_point = self.parameters_of_range()
        return fake_quantize(inputs, scale, zero_point, INT8)


def make_input_quantizer(
    spec: ActivationSpec | None, observer: ObserverName, device: torch.device
) -> InputQuantizer | None:
    """The quantiser of a linear's input, or None where inputs stay as they are."""
    if spec is None:
        return None
    return DynamicInputQuantizer() if spec.mode == "dynamic" else StaticInputQuantizer(observer).to(device)
