"""Which format keeps a checkpoint's integers, and what any other makes of them. Light: by schemes alone, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgequant.errors import UserError
from edgequant.export.formats import (
    BLOCK,
    COMPRESSED_TENSORS,
    FOLDERS,
    FORMATS,
    ONNX,
    check_expressible,
    fitting_format,
)
from edgequant.export.onnx.expressible import check_scheme as check_graph
from edgequant.models.onnx.library import check_installed
from edgequant.quantization.scheme import Scheme, WeightSpec

AUTO = "auto"
GGUF = "gguf"
EXPORTS = (GGUF, ONNX)  # what may lie beside a checkpoint
OWN = ("q4_0", "q4_k", "q4_1", "q6_k", "q8_0")  # formats that hold integers of ours, the smallest first
FLOATING = "q8_0"  # of a model without integers, and of integers that no format holds
LEAST_EMBEDDING = "q8_0"  # llama.cpp, too, spends at least so many bits on an embedding that it rounds itself


@dataclass(frozen=True)
class Target:
    """What a model is written as.

    Attributes:
        format: of a GGUF file, or one of `formats.FOLDERS`.
        embedding_format: of a GGUF file's embedding and output matrix, where the user chose one.
        keeps: each matrix of a GGUF file takes the format that holds its integers; `format` is that of the others.
        because: why it was chosen, where `auto` did.
    """

    format: str
    embedding_format: str | None = None
    keeps: bool = False
    because: str = ""

    def of_tensor(self, spec: WeightSpec | None, *, embeds: bool) -> str:
        """The format of one matrix of a GGUF file; `spec`: of its integers, `embeds`: of embedding or output matrix."""
        if embeds and self.embedding_format is not None:
            return self.embedding_format
        own = None if spec is None else own_format(spec)
        if own is not None and self.keeps:
            return own
        if not embeds or FORMATS[self.format] >= 16 or (spec is not None and copies_integers(spec, self.format)):
            return self.format
        return own or LEAST_EMBEDDING

    def encoded_again(self, scheme: Scheme | None) -> list[str]:
        """Whose integers do not stay, in words with what they become; empty where all do or there are none."""
        if self.format in FOLDERS or scheme is None:
            return []
        found = []
        for part, embeds, specs in _parts(scheme):
            formats = [(self.of_tensor(spec, embeds=embeds), spec) for spec in specs]
            changed = sorted({name for name, spec in formats if not copies_integers(spec, name)})
            found += [f"{part} as {' and '.join(changed)}"] if changed else []
        return found

    def fitting(self, widths: Sequence[int]) -> Target:
        """The target of a model whose matrices have rows of these widths: f16 where no block fits what `auto` chose.

        Raises:
            UserError: as `check_blocks`, of a format that was asked for.
        """
        if self.because and self._fits_none(widths):
            why = f"no block of {BLOCK} fits rows of {_listed(widths)}"
            return replace(self, format="f16", keeps=False, because=why)
        self.check_blocks(widths)
        return self

    def check_blocks(self, widths: Sequence[int]) -> None:
        """Refuse a format that none of a model's matrices, with rows of these widths, would be in.

        Raises:
            UserError: says what to use instead.
        """
        if self._fits_none(widths):
            raise UserError(
                f"format {self.format} needs matrices with rows that {BLOCK} divides, got rows of {_listed(widths)} "
                "alone, which would all be f16; use --format f16, or onnx or compressed-tensors for a checkpoint of "
                "`edgequant ptq` or `qat`"
            )

    def _fits_none(self, widths: Sequence[int]) -> bool:
        return bool(widths) and len(self._without_blocks(widths)) == len(widths)

    def _without_blocks(self, widths: Sequence[int]) -> list[int]:
        """Those that a GGUF file of fewer bits has no block for."""
        is_quantised = FORMATS.get(self.format, 16) < 16
        return [width for width in widths if is_quantised and fitting_format(self.format, width) == "f16"]

    def line(self, scheme: Scheme | None, others: str = "", widths: Sequence[int] = ()) -> str:
        """One line for people, before anything is written.

        Args:
            others: whose integers not of ours the model has.
            widths: of the rows of each of its matrices.
        """
        why = f" ({self.because})" if self.because else ""
        if odd := self._without_blocks(widths):
            why += f"; {len(odd)} of {len(widths)} matrices become f16: {BLOCK} does not divide rows of {_listed(odd)}"
        if scheme is None:
            return f"format: {self.format}{f' encodes the numbers of {others} again' if others else ''}{why}"
        again = self.encoded_again(scheme)
        kept = f"encodes the integers of {scheme.name} again: {', '.join(again)}" if again else "keeps all integers"
        return f"format: {self.format} {kept}{why}"


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))


def own_format(spec: WeightSpec) -> str | None:
    """The smallest GGUF format that holds a weight's integers as they are, or None."""
    return next((name for name in OWN if copies_integers(spec, name)), None)


def copies_integers(spec: WeightSpec, format_name: str) -> bool:
    """Whether a weight's integers can be written in a format as they are.

    llama.cpp's own layouts are copied bit for bit. Four-bit affine groups become q4_1: same integers and scales; only
    the offset -scale * (zero point + 8) is rounded, to float16. Symmetric groups become q4_0 up to 4 bits and q8_0 at
    any width, with the same scales: ternary weights and those of 2 bits, whose levels are then -3, -1, 1, 3 times half
    the scale, as well.
    """
    if spec.layout != "affine":
        return spec.layout == format_name
    group = spec.group_size or 0
    if spec.scale_dtype != "float16" or group == 0 or group % BLOCK:
        return False
    symmetric = {"q4_0": spec.bits <= 4, "q8_0": True}
    affine = {"q4_1": spec.bits == 4}
    return (symmetric if spec.zero_point == "none" else affine).get(format_name, False)


def choose_target(
    scheme: Scheme | None,
    embedding_format: str | None = None,
    *,
    refused: UserError | None = None,
    runs_in_onnx: bool = False,
) -> Target:
    """What `auto` stands for: the format that keeps the integers, else the one that keeps most of them.

    Args:
        scheme: of one of our checkpoints; None: there are no integers of ours.
        embedding_format: asked for by the user, which only a GGUF file follows.
        refused: why the model cannot be a GGUF file, where that is known.
        runs_in_onnx: whether a graph of ONNX Runtime can be written here of such a model, whatever its scheme.

    Raises:
        UserError: it can be no GGUF file, and no folder either.
    """
    specs = [] if scheme is None else [spec for _, _, specs in _parts(scheme) for spec in specs]
    if not specs:
        if refused is not None:
            raise refused
        return Target(FLOATING, embedding_format, because=_without_integers(scheme))
    assert scheme is not None and scheme.weight is not None
    exact = all(own_format(spec) for spec in specs)
    main = own_format(scheme.weight) or next(filter(None, map(own_format, specs)), FLOATING)
    gguf = Target(main, embedding_format, keeps=True, because="llama.cpp's format with the same integers")
    if refused is None and (exact or embedding_format is not None):
        return gguf
    why = (
        f"llama.cpp cannot run it: {refused}" if refused is not None else "no format of llama.cpp holds these integers"
    )
    if runs_in_onnx and _holds(check_graph, scheme):
        return Target(ONNX, because=why)
    if _holds(check_expressible, scheme):
        return Target(COMPRESSED_TENSORS, because=why)
    if refused is not None:
        raise refused
    return replace(gguf, because=f"no format holds all integers of {scheme.name}")


def _holds(check: Callable[[Scheme], None], scheme: Scheme) -> bool:
    try:
        check(scheme)
    except UserError:
        return False
    return True


def exports_of(export: str | None) -> tuple[str, ...]:
    """What an option such as `gguf,onnx` asks for.

    Raises:
        UserError: names what is neither.
    """
    if export is None:
        return ()
    asked = tuple(part.strip() for part in export.split(","))
    if set(asked) - set(EXPORTS) or len(set(asked)) < len(asked):
        raise UserError(
            f"export must be gguf, onnx or gguf,onnx, or null for neither, got {export!r}; see `edgequant export` for "
            "others"
        )
    return asked


def check_export(export: str | None, schemes: Sequence[Scheme]) -> None:
    """Refuse what is to be written beside a checkpoint and could not keep its integers, before any work.

    Args:
        export: the option; None: nothing.

    Raises:
        UserError: another form, packages that are absent, or a scheme that the form does not hold; names it.
    """
    asked = exports_of(export)
    if ONNX in asked:
        check_installed("export onnx")
    for scheme in schemes if ONNX in asked else ():
        check_graph(scheme)
    for scheme in schemes if GGUF in asked else ():
        specs = [spec for _, _, specs in _parts(scheme) for spec in specs]
        if not specs or not all(own_format(spec) for spec in specs):
            raise UserError(
                f"export gguf needs a scheme whose integers a GGUF file holds, such as q4_0+embq4_0, w4-g32+emb4 or "
                f"q8_0, got {scheme.name}; leave export out, and round again with `edgequant export --format q8_0`"
            )


def _without_integers(scheme: Scheme | None) -> str:
    if scheme is not None:
        return f"{scheme.name} is dequantised and encoded again, no format holds its integers"
    return "the model has no integers of ours to keep"


def _parts(scheme: Scheme) -> list[tuple[str, bool, list[WeightSpec]]]:
    """What a scheme quantises: name, whether it is embedding and head, and the specs that its layers have."""
    bits = {bits for _, bits in scheme.layer_bits}
    if scheme.budget is not None and scheme.awaits_layer_bits:
        bits |= set(scheme.candidate_bits)
    parts = (("linears", False, scheme.weight), ("embedding and head", True, scheme.embedding))
    return [
        (name, embeds, [spec, *(spec.with_bits(width) for width in sorted(bits - {spec.bits}))])
        for name, embeds, spec in parts
        if spec is not None
    ]
