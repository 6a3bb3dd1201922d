"""Matrices and embeddings of a graph: the checkpoint's integers, and floats in the type that they have on disk."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgequant.export.onnx.blocks import Blocks, blocks_of
from edgequant.quantization.layers.packed_weight import PackedWeight

DOMAIN = "com.microsoft"
FLOAT32_PRODUCTS, INT8_PRODUCTS = 1, 4  # MatMulNBits' accuracy levels
TYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16
}  # fmt: skip


class Matrices:
    """Methods of onnxruntime-genai's builder, in place of those that read floats to be rounded."""

    def make_matmul(self: Any, matmul: Any, basename: str, root_input: str, **kwargs: Any) -> str:
        if not hasattr(matmul, "packed"):
            return self._float_product(matmul, basename, root_input, **kwargs)
        name, blocks = self._integers(matmul.packed, basename)
        inputs = [root_input, f"{name}.codes", f"{name}.scale"]
        inputs += [f"{name}.zero_points"] if blocks.zero_points is not None else []
        level = FLOAT32_PRODUCTS if matmul.activation is None else self.accuracy_level
        attributes = {"bits": blocks.bits, "block_size": blocks.size, "accuracy_level": level}
        attributes |= {"K": matmul.packed.features, "N": matmul.packed.rows}
        return self._product("MatMulNBits", inputs, basename, matmul.packed.rows, domain=DOMAIN, **attributes, **kwargs)

    def make_embedding_lookup(self: Any, embedding: Any, basename: str, _: Any) -> str:
        ids = self.input_names["input_ids"]
        if not hasattr(embedding, "packed"):
            weight, dtype = self._floats(embedding.weight, basename)
            rows = self._gather("Gather", [weight, ids], basename, dtype)
            return self._as_float32(rows, dtype, self.make_hidden_state_shape())
        name, blocks = self._integers(embedding.packed, basename)
        rows = [embedding.packed.rows, blocks.per_row * blocks.size * blocks.bits // 8]
        self.make_reshape(
            f"{basename}/Reshape", [f"{name}.codes", f"/model/constants/INT64/{rows}"], ir.DataType.UINT8, rows
        )
        inputs = [f"{basename}/Reshape/output_0", ids, f"{name}.scale"]
        inputs += [f"{name}.zero_points"] if blocks.zero_points is not None else []
        attributes = {"bits": blocks.bits, "block_size": blocks.size, "gather_axis": 0, "quantize_axis": 1}
        output = self._gather("GatherBlockQuantized", inputs, basename, torch.float32, domain=DOMAIN, **attributes)
        padded = blocks.per_row * blocks.size
        return output if padded == self.hidden_size else self._first_features(output, basename, padded)

    def _float_product(self: Any, matmul: nn.Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        """A matrix in floating point, which lies on disk once where it is tied."""
        rows, features = matmul.weight.shape
        weight = self._as_float32(*self._floats(matmul.weight, basename), [rows, features])
        self.make_transpose(f"{basename}/Transpose", weight, ir.DataType.FLOAT, [features, rows], [1, 0])
        return self._product("MatMul", [root_input, f"{basename}/Transpose/output_0"], basename, rows, **kwargs)

    def _product(
        self: Any, operator: str, inputs: list[str], basename: str, rows: int, *,
        logits: bool = False, seq_dim: Any = "sequence_length", **attributes: Any,
    ) -> str:  # fmt: skip
        output = "logits" if logits else f"{basename}/output_0"
        self.make_node(operator, inputs=inputs, outputs=[output], name=basename, **attributes)
        self.make_value(output, ir.DataType.FLOAT, shape=self.make_hidden_state_shape(seq_dim=seq_dim, last_dim=rows))
        return basename

    def _gather(
        self: Any, operator: str, inputs: list[str], basename: str, dtype: torch.dtype, **attributes: Any
    ) -> str:
        output = f"{basename}/{operator}/output_0"
        self.make_node(operator, inputs=inputs, outputs=[output], name=f"{basename}/{operator}", **attributes)
        self.make_value(output, TYPES[dtype])
        return output

    def _first_features(self: Any, output: str, basename: str, padded: int) -> str:
        self.make_value(output, ir.DataType.FLOAT, shape=self.make_hidden_state_shape(last_dim=padded))
        bounds = [f"/model/constants/INT64/[{at}]" for at in (0, self.hidden_size, -1)]
        self.make_slice(f"{basename}/Slice", [output, *bounds], ir.DataType.FLOAT, self.make_hidden_state_shape())
        return f"{basename}/Slice/output_0"

    def _floats(self: Any, weight: Tensor, basename: str) -> tuple[str, torch.dtype]:
        """The name and type of a weight in the shortest type that holds it."""
        if id(weight) not in self.names:
            compact = _compact(weight.detach().cpu())
            self.names[id(weight)] = f"{_name(basename)}.weight", compact.dtype
            self.make_initializer(compact, f"{_name(basename)}.weight")
        return self.names[id(weight)]

    def _as_float32(self: Any, value: str, dtype: torch.dtype, shape: Any) -> str:
        if dtype == torch.float32:
            return value
        self.make_cast(f"/cast/{value}", value, ir.DataType.FLOAT, shape)
        return f"/cast/{value}/output_0"

    def _integers(self: Any, packed: PackedWeight, basename: str) -> tuple[str, Blocks]:
        """Codes, scales and zero points of a weight, once where several layers have it."""
        if id(packed) not in self.names:
            name, blocks = _name(basename), blocks_of(packed)
            self.names[id(packed)] = (name, blocks)
            self.make_initializer(blocks.codes, f"{name}.codes")
            if blocks.zero_points is not None:
                self.make_initializer(blocks.zero_points, f"{name}.zero_points")
            self._scales(name, blocks)
        return self.names[id(packed)]

    def _scales(self: Any, name: str, blocks: Blocks) -> None:
        """`{name}.scale` [rows, blocks] in float32, of scales as they are stored; ONNX Runtime computes it once."""
        rows, (_, groups, _) = blocks.codes.shape[0], blocks.scale.shape
        self.make_initializer(blocks.scale, f"{name}.stored_scale")
        scale = self._as_float32(f"{name}.stored_scale", blocks.scale.dtype, list(blocks.scale.shape))
        wide = f"/model/constants/INT64/[{rows}, {groups}, {blocks.repeats}]"
        self.make_expand(f"/{name}/Expand", [scale, wide], ir.DataType.FLOAT, [rows, groups, blocks.repeats])
        flat = [f"/{name}/Expand/output_0", f"/model/constants/INT64/[{rows}, {blocks.per_row}]"]
        self.make_node("Reshape", inputs=flat, outputs=[f"{name}.scale"], name=f"/{name}/Reshape")
        self.make_value(f"{name}.scale", ir.DataType.FLOAT, [rows, blocks.per_row])


def _name(basename: str) -> str:
    return basename.strip("/").replace("/", ".")


def _compact(weight: Tensor) -> Tensor:
    shorter = (weight.to(dtype) for dtype in (torch.float16, torch.bfloat16))
    return next((one for one in shorter if torch.equal(one.float(), weight.float())), weight)
