"""Write a model as one GGUF file that llama.cpp runs: `write_gguf(loaded, "model-q8_0.gguf", "q8_0")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, TensorNameMap, get_tensor_name_map
from gguf.constants import GGML_QUANT_VERSION, MODEL_ARCH_NAMES

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.export.choice import Target, copies_integers
from edgequant.export.formats import Exported, check_format, fitting_format
from edgequant.export.gguf.architectures import (
    Architecture,
    architecture_of,
    extra_tensors,
    row_order,
    write_hyperparameters,
)
from edgequant.export.gguf.expressible import check_expressible
from edgequant.export.gguf.tensors import (
    Bytes,
    SourceTensor,
    check_range,
    encode,
    encode_packed,
    source_tensors,
    stored_shape,
)
from edgequant.export.gguf.tokenizer import WriterOfEmptyLists, check_reads_back, write_tokenizer
from edgequant.files import atomic_path, sha256_of
from edgequant.models.gguf.load import check_gguf
from edgequant.models.loading import LoadedModel
from edgequant.models.same_function.integers_of_bitsandbytes import dequantized, holds_integers
from edgequant.models.same_function.merging import merge_adapters
from edgequant.progress import progress

EMBEDDINGS = ("token_embd.weight", "output.weight")
ELEMENT: dict[str, Any] = {"f32": np.float32, "f16": np.float16}  # every other format is written as bytes


class _Plan(NamedTuple):
    """One tensor of the file: its name there, its source, its format, and how its rows and values change."""

    name: str
    source: SourceTensor
    format: str
    order: Any
    offset: float

    @property
    def kind(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.format.upper()]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return stored_shape(self.source.shape, self.kind)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(ELEMENT.get(self.format, np.uint8))

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.stored_shape)) * self.dtype.itemsize

    @property
    def copies_integers(self) -> bool:
        return self.source.packed is not None and copies_integers(self.source.packed.spec, self.format)


def write_gguf(loaded: LoadedModel, path: str | Path, target: str | Target = "q8_0") -> Exported:
    """Write a model and its tokenizer as a GGUF file, whole or not at all, one tensor in memory at a time.

    Matrices take the format, or what fits the length of their rows (`fitting_format`); norms and biases are f32. A
    quantised checkpoint's integers are copied where the format can hold them, and are dequantised and encoded again
    where not.

    Args:
        loaded: any model that `models.load` gives: plain, quantised, or with a LoRA adapter, which is merged.
        path: the file to write.
        target: one of `formats.FORMATS`, or more exactly what each matrix becomes. An embedding whose own integers do
            not fit takes q8_0 beside formats of fewer bits.

    Raises:
        UserError: unknown format, one that no matrix fits, or an architecture, tokenizer or feature that llama.cpp
            cannot reproduce.
    """
    content = _content(loaded, target)
    for plan in content.plans:
        if not plan.copies_integers:
            check_range(plan.source, plan.format)
    with atomic_path(path) as temporary:
        writer = _writer_with_header(temporary, content, loaded)
        _write_tensors(writer, content)
        check_gguf(temporary)
    return Exported(Path(path), Path(path).stat().st_size, sha256_of(path), content.parameters, _notes(content, loaded))


def gguf_size(loaded: LoadedModel, target: str | Target = "q8_0") -> tuple[int, int]:
    """Bytes of the file that `write_gguf` would write, tokenizer included, and parameters of the model.

    Header, fields and list of tensors are written, the tensors are counted.

    Raises:
        UserError: as `write_gguf`, but for weights that are not looked at.
    """
    content = _content(loaded, target)
    with Scratch() as folder:
        file = Path(folder, "header.gguf")
        writer = _writer_with_header(file, content, loaded)
        alignment = writer.data_alignment
        writer.close()
        size = file.stat().st_size
    lengths = [size, *(values.nbytes for values in content.extra.values()), *(plan.size for plan in content.plans)]
    return sum(GGUFWriter.ggml_pad(length, alignment) for length in lengths), content.parameters


class _Content(NamedTuple):
    """All that goes into a file."""

    model: Any
    architecture: Architecture
    target: Target
    plans: list[_Plan]
    extra: dict[str, Bytes]

    @property
    def parameters(self) -> int:
        """Tied weights count once."""
        unique = {plan.source.name: plan.source.shape for plan in self.plans}
        return sum(int(np.prod(shape)) for shape in unique.values())


def _content(loaded: LoadedModel, target: str | Target) -> _Content:
    target = Target(target) if isinstance(target, str) else target
    check_format(target.format)
    model = _plain(loaded.model, loaded.tokenizer)
    architecture = architecture_of(model.config)
    check_expressible(model.config)
    plans = _plans(model, architecture, target)
    # what `auto` chose has been fitted before, and a file is not another format than its name says
    target.check_blocks([plan.source.shape[-1] for plan in plans if len(plan.source.shape) > 1])
    return _Content(model, architecture, target, plans, extra_tensors(model.config))


def _plain(model: Any, tokenizer: Any) -> Any:
    """Merge an adapter into its weights; give bitsandbytes' layers their floating-point weights back."""
    if hasattr(model, "get_base_model"):  # of peft
        model = merge_adapters(model, tokenizer)
    return dequantized(model, tokenizer) if holds_integers(model) else model


def _plans(model: Any, architecture: Architecture, target: Target) -> list[_Plan]:
    config = model.config
    names = get_tensor_name_map(architecture.gguf, config.num_hidden_layers)
    plans = []
    for source in source_tensors(model):
        name = _gguf_name(names, source.name)
        wanted = _wanted_format(name, source, target)
        is_norm = name.endswith("norm.weight")
        order = row_order(architecture, config, source.name)
        plans.append(_Plan(name, source, wanted, order, architecture.norm_offset if is_norm else 0.0))
    if architecture.needs_own_head and not any(plan.name == "output.weight" for plan in plans):
        embedding = next(plan for plan in plans if plan.name == "token_embd.weight")
        plans.append(embedding._replace(name="output.weight"))
    return plans


def _gguf_name(names: TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise UserError(
            f"tensor {name!r} has no place in llama.cpp's version of this architecture; it cannot be exported"
        )
    return str(found)


def _wanted_format(name: str, source: SourceTensor, target: Target) -> str:
    if len(source.shape) < 2:
        return "f32"
    wanted = target.of_tensor(None if source.packed is None else source.packed.spec, embeds=name in EMBEDDINGS)
    return fitting_format(wanted, source.shape[-1])


def _writer_with_header(file: Path, content: _Content, loaded: LoadedModel) -> GGUFWriter:
    """A writer that has written everything in front of the tensors."""
    writer = WriterOfEmptyLists(file, MODEL_ARCH_NAMES[content.architecture.gguf])
    _write_metadata(writer, content.model, loaded, content.target.format)
    for name, values in content.extra.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for plan in content.plans:
        writer.add_tensor_info(plan.name, plan.stored_shape, plan.dtype, plan.size, plan.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _write_metadata(writer: GGUFWriter, model: Any, loaded: LoadedModel, format_name: str) -> None:
    writer.add_type("model")
    writer.add_name(loaded.source.name)
    writer.add_quantized_by("edgequant")
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(format_name))
    write_hyperparameters(writer, model.config)
    write_tokenizer(writer, loaded.tokenizer, model.config.vocab_size)
    check_reads_back(writer, loaded.tokenizer)


def _file_type(format_name: str) -> LlamaFileType:
    if format_name == "f32":
        return LlamaFileType.ALL_F32
    return LlamaFileType["MOSTLY_Q4_K_M" if format_name == "q4_k" else f"MOSTLY_{format_name.upper()}"]


def _write_tensors(writer: GGUFWriter, content: _Content) -> None:
    for values in content.extra.values():
        writer.write_tensor_data(values)
    for plan in progress(content.plans, len(content.plans), "export", "tensor"):
        writer.write_tensor_data(_encoded(plan))
    writer.close()


def _encoded(plan: _Plan) -> Bytes:
    if plan.copies_integers and plan.source.packed is not None:
        return encode_packed(plan.source.packed, plan.order, plan.format)
    values = plan.source.read() + plan.offset
    return encode(values if plan.order is None else values[plan.order], plan.kind)


def _notes(content: _Content, loaded: LoadedModel) -> list[str]:
    plans, format_name = content.plans, content.target.format
    packed = [plan for plan in plans if plan.source.packed is not None]
    kept = [plan for plan in packed if plan.copies_integers]
    odd = [plan for plan in plans if len(plan.source.shape) > 1 and plan.format != format_name]
    notes = []
    if kept:
        notes.append(f"{len(kept)} of {len(packed)} quantised matrices keep the checkpoint's integers")
    if len(kept) < len(packed):
        formats = " and ".join(sorted({plan.format for plan in packed if not plan.copies_integers}))
        notes.append(
            f"{len(packed) - len(kept)} quantised matrices were encoded again as {formats}: see the parity metrics"
        )
    if any(plan.format == "q4_1" and plan.source.packed.spec.layout == "affine" for plan in kept):  # type: ignore[union-attr]
        notes.append("q4_1 rounds the offsets of affine groups to float16; integers and scales are the checkpoint's")
    if odd:
        shown = ", ".join(plan.name for plan in odd[:3]) + (", ..." if len(odd) > 3 else "")
        notes.append(f"not {format_name} but {' and '.join(sorted({plan.format for plan in odd}))}: {shown}")
    config: Any = loaded.model.config
    if config.model_type == "qwen2" and architecture_of(config).gguf is MODEL_ARCH.LLAMA:
        notes.append("written as llama.cpp's llama, which computes the same: its qwen2 has no heads of another size")
    if any(
        getattr(module, "activation", None) is not None and hasattr(module, "packed")
        for module in loaded.model.modules()
    ):
        notes.append("activations: llama.cpp quantises them to 8 bits its own way (blocks of 32, at run time)")
    return notes
