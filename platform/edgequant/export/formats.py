"""The formats that export offers. Light: the command line reads it before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgequant.errors import UserError
from edgequant.quantization.scheme import Scheme
from edgequant.quantization.weight_spec import IN_PLACE_OF, ggml_spec

# Name -> bits per weight with scales. All are formats of llama.cpp; but for the K-quants q6_k and q4_k, whose scales
# and minima are our own search's, they are written as the gguf package does, bit for bit.
FORMATS = {
    **{"q8_0": 8.5, "q6_k": 6.5625, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_k": 4.5, "q4_0": 4.5},
    **{"f16": 16.0, "bf16": 16.0, "f32": 32.0},
}
BLOCK = 32  # values that share a scale in every quantised format but the K-quants, which need 256
COMPRESSED_TENSORS = "compressed-tensors"  # a folder for transformers and vLLM, not a GGUF file
ONNX = "onnx"  # a folder for onnxruntime-genai
GPTQ = "gptq"  # a folder for vLLM, transformers with gptqmodel, and onnxruntime-genai's builder
LORA = "lora"  # a GGUF file of an adapter's factors, which llama.cpp puts beside a model's
QUANTIZE_CONFIG = "quantize_config.json"  # by which such a folder is known
FOLDERS = (COMPRESSED_TENSORS, ONNX, GPTQ)  # that hold a checkpoint's integers, and nothing else


@dataclass(frozen=True)
class Exported:
    """What an export wrote. `notes` say what is not as one might expect.

    Attributes:
        path: the GGUF file, or the folder.
        size_bytes: of the file, of the safetensors of a compressed-tensors or gptq folder, of all files of an onnx
            folder.
        sha256: of the file, or of the folder's weights; its marker has those of all its files.
        parameters: of the model, tied weights once; None of an adapter, which is none and saves nothing against one.
    """

    path: Path
    size_bytes: int
    sha256: str
    parameters: int | None
    notes: list[str] = field(default_factory=list)


def fitting_format(name: str, width: int) -> str:
    """The format of a matrix whose rows have so many values: the one asked for, or what takes its place.

    A K-quant holds multiples of 256, as its scheme does (`weight_spec.IN_PLACE_OF`), every other one multiples of 32;
    f16 holds the rest.
    """
    if FORMATS[name] >= 16:
        return name
    fitting = ggml_spec(name).fitting(width).layout if name in IN_PLACE_OF else name
    return fitting if width % BLOCK == 0 else "f16"


def file_name(model: str, format: str) -> str:
    """Name of a model's GGUF file."""
    return f"{model}-{format}.gguf"


def check_format(name: str, parameter: str = "format", known: Collection[str] = tuple(FORMATS)) -> str:
    """The format's name.

    Raises:
        UserError: unknown format; names the known ones.
    """
    if name not in known:
        raise UserError(f"{parameter} must be one of {', '.join(known)}, got {name!r}")
    return name


def needs_checkpoint(format: str, name: str, location: str) -> UserError:
    """The error for a model without integers where a format is wanted that holds nothing else."""
    return UserError(
        f"model for {format} must be a checkpoint that `edgequant ptq` or `edgequant qat` made, got {name!r} "
        f"without integers; run `edgequant ptq --model {location} --scheme w4-g32` first and export what it writes"
    )


def checkpoint_scheme(loaded: Any, format: str) -> Scheme:
    """The scheme of one of our checkpoints, as `models.load` gives it.

    Raises:
        UserError: the model is in floating point, or quantised by something else.
    """
    scheme = getattr(getattr(loaded.model.config, "quantization_config", None), "scheme", None)
    if not isinstance(scheme, Scheme):
        raise needs_checkpoint(format, loaded.source.name, loaded.source.location)
    return scheme


def check_expressible(scheme: Scheme) -> None:
    """Refuse a scheme whose numbers compressed-tensors cannot hold.

    Raises:
        UserError: names what it lacks and the schemes that it holds.
    """
    specs = [spec for spec in (scheme.weight, scheme.embedding) if spec is not None]
    if any(spec.is_k_quant for spec in specs):
        lacking = "scales of scales"
    elif any(spec.zero_point == "real" for spec in specs):
        lacking = "a real minimum for each group, only integer zero points"
    elif any(spec.granularity == "tensor" for spec in specs):
        lacking = "packed zero points of whole tensors"
    elif not specs:
        lacking = "bitsandbytes' data types"
    else:
        return
    own = next((spec.layout for spec in specs if spec.layout in FORMATS), "q8_0")
    raise UserError(
        f"scheme {scheme.name} cannot be written as compressed-tensors, which has no place for {lacking}; use w8, "
        "w4-g32, w4-g64, w4-g128, w8a8, w8a8-static, w4a8-g32, q8_0 or q4_0, or write a GGUF "
        f"file with --format {own}"
    )
