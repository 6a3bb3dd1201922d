"""What ships of a checkpoint: the exported form that keeps its integers, how large it is, on request the file."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.export.choice import GGUF, Target, choose_target, exports_of
from edgequant.export.formats import COMPRESSED_TENSORS, ONNX, file_name
from edgequant.export.onnx.expressible import check_configuration
from edgequant.files import bytes_of, sha256_of
from edgequant.models.loading import LoadedModel
from edgequant.models.manifest import list_file
from edgequant.models.onnx.library import check_installed
from edgequant.quantization.scheme import Scheme, told_replacements

GB = 1e9
NOTHING = "none"


@dataclass(frozen=True)
class Shipped:
    """Attributes:
    format: of the exported form, or `none` where no format keeps the integers.
    metrics: `deploy/size_gb`, all files with the tokenizer, and `deploy/reduction_vs_fp16` in per cent; none with
        `none`.
    notes: what is not as one might expect.
    sha256: of the file that was written; empty where none was.
    path: the GGUF file or ONNX folder, beside the checkpoint's weights or in the folder that was given for it; None
        where none was written.
    onnx_sha256: of the weights of an ONNX folder beside the checkpoint's; empty where there is none.
    """

    format: str
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = ""
    path: Path | None = None
    onnx_sha256: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """For the registry."""
        found = {"edgequant.deploy_format": self.format, "edgequant.gguf_sha256": self.sha256}
        return found | {"edgequant.onnx_sha256": self.onnx_sha256}


def ship(loaded: LoadedModel, checkpoint: Path, export: str | None = None, *, scratch: Path | None = None) -> Shipped:
    """Say how large the form that ships is; with `export` gguf or onnx, put it into the checkpoint's folder.

    A GGUF file's size is computed; a folder is written for it, and removed again. Of `gguf,onnx` the first is measured.

    Args:
        loaded: the checkpoint as it was loaded.
        checkpoint: its folder, whose manifest then lists the file.
        scratch: an empty folder that receives a GGUF file or an ONNX folder where `export` asks for none,
            to be looked at.

    Raises:
        UserError: `export` asks for a file, and the model can be none.
    """
    exports = exports_of(export)
    beside = _onnx_beside(loaded, checkpoint) if ONNX in exports else None
    form = beside if beside is not None and GGUF not in exports else _shipped(loaded, checkpoint, export, scratch)
    if beside is not None and form is not beside:
        form = replace(form, notes=(*form.notes, *beside.notes), onnx_sha256=beside.onnx_sha256)
    replaced = _replacements(loaded)
    return replace(form, notes=(replaced, *form.notes)) if replaced else form


def _replacements(loaded: LoadedModel) -> str:
    from edgequant.quantization.layers.integer import integer_layers

    scheme = scheme_of(loaded)
    layers = {name: layer for name, layer in integer_layers(loaded.model).items() if not layer.is_tied}
    ends = (loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings())
    embeddings = [name for name, layer in layers.items() if any(layer is end for end in ends)]
    widths = {name: layer.packed.features for name, layer in layers.items()}
    return "" if scheme is None else told_replacements(scheme, widths, embeddings)


def _shipped(loaded: LoadedModel, checkpoint: Path, export: str | None, scratch: Path | None) -> Shipped:
    scheme = scheme_of(loaded)
    try:
        config, tokenizer = loaded.model.config, loaded.tokenizer
        runs_in_onnx = onnx_refusal(config, tokenizer) is None
        target = choose_target(scheme, refused=gguf_refusal(config, tokenizer), runs_in_onnx=runs_in_onnx)
    except UserError as refusal:
        if export is not None:
            raise
        return Shipped(NOTHING, notes=(f"no shipped size: {refusal}",))
    if scheme is None or target.encoded_again(scheme):
        what = "the model" if scheme is None else scheme.name
        why = f"no shipped size: no format keeps the integers of {what}; `edgequant export` rounds them again"
        return Shipped(NOTHING, notes=(why,))
    if target.format == COMPRESSED_TENSORS:
        return Shipped(target.format, deploy_sizes(*_folder_size(loaded, checkpoint)))
    if target.format == ONNX:
        return _onnx(loaded, checkpoint, scratch)
    if export is None and scratch is None:
        from edgequant.export.gguf.write import gguf_size

        return Shipped(target.format, deploy_sizes(*gguf_size(loaded, target)))
    if export is None:
        return _written(loaded, scratch or checkpoint, target)
    shipped = _written(loaded, checkpoint, target)
    assert shipped.path is not None
    list_file(checkpoint, shipped.path.name, shipped.sha256)
    return replace(shipped, notes=(f"file  {shipped.path}", *shipped.notes))


def check_can_ship(config: Any, tokenizer: Any, export: str | None) -> None:
    """Refuse a model that can be no GGUF file or ONNX folder where one is to be written, before hours of work.

    Args:
        config: of transformers.
        export: the option.

    Raises:
        UserError: says why.
    """
    refusals = {GGUF: gguf_refusal, ONNX: onnx_refusal}
    for name in exports_of(export):
        if (refusal := refusals[name](config, tokenizer)) is not None:
            raise refusal


def scheme_of(loaded: LoadedModel) -> Scheme | None:
    """The scheme of one of our checkpoints; None: in floating point, or quantised by something else."""
    scheme = getattr(getattr(loaded.model.config, "quantization_config", None), "scheme", None)
    return scheme if isinstance(scheme, Scheme) else None


def others_integers(loaded: LoadedModel) -> str:
    """Whose integers a model came with, in words, where they are not ours; empty where there are none."""
    if loaded.source.kind == "gguf":
        return "the GGUF file"
    stated = getattr(loaded.model.config, "quantization_config", None)
    if stated is None or scheme_of(loaded) is not None:
        return ""
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    return str(getattr(method, "value", method) or "another quantiser")


def matrix_widths(loaded: LoadedModel) -> list[int]:
    """The width of each matrix's rows, without an adapter's; none where bitsandbytes has packed them."""
    from edgequant.export.gguf.tensors import source_tensors
    from edgequant.models.same_function.integers_of_bitsandbytes import holds_integers

    if holds_integers(loaded.model):
        return []
    tensors = source_tensors(loaded.model)
    return [tensor.shape[-1] for tensor in tensors if len(tensor.shape) > 1 and ".lora_" not in tensor.name]


def gguf_refusal(config: Any, tokenizer: Any) -> UserError | None:
    """Why a model can be no GGUF file, as far as its configuration and tokenizer tell."""
    from edgequant.export.gguf.expressible import check_expressible
    from edgequant.export.gguf.tokenizer import check_tokenizer

    try:
        check_expressible(config)
        check_tokenizer(tokenizer, config.vocab_size)
    except UserError as refusal:
        return refusal
    return None


def onnx_refusal(config: Any, tokenizer: Any) -> UserError | None:
    """Why a model can be no ONNX folder, as far as its configuration, its tokenizer and this machine tell."""
    try:
        check_installed()
        check_configuration(config, tokenizer)
    except UserError as refusal:
        return refusal
    return None


def _onnx(loaded: LoadedModel, checkpoint: Path, scratch: Path | None) -> Shipped:
    """An ONNX folder in `scratch`, or its size alone."""
    from edgequant.export.onnx.write import write_onnx

    place = nullcontext(scratch) if scratch else Scratch(place_beside(checkpoint), ".shipped.")
    with place as folder:
        written = write_onnx(loaded, Path(folder) / ONNX)
    metrics = deploy_sizes(written.size_bytes, written.parameters)
    return Shipped(ONNX, metrics, tuple(written.notes), path=written.path if scratch else None)


def _onnx_beside(loaded: LoadedModel, checkpoint: Path) -> Shipped:
    """An ONNX folder in the checkpoint's, whose manifest then lists its files."""
    shipped = _onnx(loaded, checkpoint, checkpoint)
    assert shipped.path is not None
    files = {path.name: sha256_of(path) for path in sorted(shipped.path.iterdir())}
    for name, digest in files.items():
        list_file(checkpoint, f"{ONNX}/{name}", digest)
    notes = (f"folder  {shipped.path}", *shipped.notes)
    return replace(shipped, notes=notes, onnx_sha256=files["model.onnx.data"])


def _written(loaded: LoadedModel, folder: Path, target: Target) -> Shipped:
    from edgequant.export.gguf.write import write_gguf

    written = write_gguf(loaded, folder / file_name(loaded.source.name, target.format), target)
    metrics = deploy_sizes(written.size_bytes, written.parameters)
    return Shipped(target.format, metrics, tuple(written.notes), written.sha256, written.path)


def _folder_size(loaded: LoadedModel, checkpoint: Path) -> tuple[int, int | None]:
    from edgequant.export.compressed_tensors.write import write_compressed_tensors

    with Scratch(place_beside(checkpoint), ".shipped.") as folder:
        written = write_compressed_tensors(loaded, Path(folder, "folder"))
        return bytes_of(written.path), written.parameters


def place_beside(checkpoint: Path) -> Path | None:
    """Where a file of a checkpoint's size may stand for a moment; None: the system's own place, of one read-only."""
    return checkpoint.parent if os.access(checkpoint.parent, os.W_OK) else None


def deploy_sizes(size: int, parameters: int | None) -> dict[str, float]:
    """`deploy/size_gb` and, of a model, what it saves against 2 bytes per parameter, in per cent; `size` in bytes."""
    sizes = {"deploy/size_gb": size / GB}
    return sizes if parameters is None else sizes | {"deploy/reduction_vs_fp16": 100 * (1 - size / (2 * parameters))}
