"""Makes `AutoModelForCausalLM.from_pretrained(folder)` load our checkpoints, by a registered quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from edgequant.errors import UserError
from edgequant.folders import MANIFEST
from edgequant.models.configs import OUR_METHOD
from edgequant.models.manifest import verify
from edgequant.quantization.checkpoint import read_scheme
from edgequant.quantization.layers.convert import build_integer_layers
from edgequant.quantization.scheme import Scheme


@register_quantization_config(OUR_METHOD)
class EdgequantConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json: the scheme as plain values."""

    def __init__(self, scheme: dict[str, Any] | Scheme | None = None, **_further: Any) -> None:
        self.quant_method = OUR_METHOD  # type: ignore[assignment]  # transformers keeps an enum of its own methods
        self.scheme = scheme if isinstance(scheme, Scheme) else read_scheme(scheme, "config.json")

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": OUR_METHOD, "scheme": self.scheme.to_dict()}


@register_quantizer(OUR_METHOD)
class EdgequantQuantizer(HfQuantizer):
    """Verifies the files, puts integer layers in place of the model's own, and lets transformers fill them."""

    requires_calibration = True  # a floating-point model is quantised by `edgequant ptq` or `qat`, not while loading

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        files = [Path(str(file)) for file in kwargs.get("checkpoint_files") or []]
        if files and not _is_fetched_in_parts(files[0].parent):
            verify(files[0].parent)
        scheme: Scheme = self.quantization_config.scheme  # type: ignore[attr-defined]
        targets = build_integer_layers(model, scheme)
        if targets.embedding is not None:  # integer embedding and head share one PackedWeight, not a parameter
            model.all_tied_weights_keys = {}
            model._tied_weights_keys = None
        if files:
            _check_shapes(model, files)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        return model

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False  # checkpoint.save writes the folder, with its manifest


def _is_fetched_in_parts(folder: Path) -> bool:
    """A hub's cache holds the files that were asked for, and its client has checked each; the manifest is not one."""
    return folder.parent.name == "snapshots" and not (folder / MANIFEST).is_file()


def _check_shapes(model: Any, files: list[Path]) -> None:
    """transformers fills what fits and warns about the rest; a checkpoint that does not fit is refused instead."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: (shape, file) for file in files for name, shape in _stored_shapes(file).items()}
    for name, (found, file) in stored.items():
        if expected.get(name) != found:
            wanted = expected.get(name, "no such tensor")
            raise UserError(f"{file}: tensor {name} has shape {found}, the model expects {wanted}")
    missing = [name for name in expected if name not in stored and name not in (model.all_tied_weights_keys or {})]
    if missing:
        others = f" and {len(missing) - 1} others are" if len(missing) > 1 else " is"
        raise UserError(f"{files[0]}: tensor {missing[0]}{others} missing; make the checkpoint again")


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(str(file), framework="pt") as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - no mapping
