"""llama.cpp's block formats, against the gguf package: codes and scales bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from edgequant.quantization.arithmetic.affine import dequantize_weight, quantize_weight
from edgequant.quantization.scheme import parse_scheme

TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
TYPES["q4_1"] = gguf.GGMLQuantizationType.Q4_1


def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    normal = generator.normal(0, 0.05, (64, 256)).astype(np.float32)
    ties = np.tile(np.array([1.0, -1.0, 0.5, -0.5], np.float32), (4, 64))  # the largest magnitude has both signs
    halves = (generator.integers(-254, 255, (16, 128)) / 2).astype(np.float32)
    halves[:, ::32] = 127.0  # scale 1 in q8_0: values halfway between two codes
    sparse = np.where(generator.random((16, 128)) < 0.9, 0, normal[:16, :128]).astype(np.float32)
    sparse[:, :32] = 0  # whole blocks of zeros
    heavy = (generator.standard_t(2, (32, 96)) * 3).astype(np.float32)
    return {"normal": normal, "ties": ties, "halves": halves, "sparse": sparse, "heavy": heavy}


def fields_of(stored: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes [rows, blocks, 32], scale and minimum [rows, blocks] as ggml-common.h lays them out."""
    rows = stored.shape[0]
    blocks = stored.reshape(rows, -1, {"q8_0": 34, "q4_0": 18, "q4_1": 20}[layout])
    scale = blocks[..., :2].copy().view(np.float16)[..., 0]
    if layout == "q8_0":
        return blocks[..., 2:].copy().view(np.int8), scale, None
    minimum = blocks[..., 2:4].copy().view(np.float16)[..., 0] if layout == "q4_1" else None
    nibbles = blocks[..., -16:]
    codes = np.concatenate((nibbles & 0xF, nibbles >> 4), -1).astype(np.int8) - 8
    return codes, scale, minimum


@pytest.mark.parametrize("layout", TYPES)
@pytest.mark.parametrize("kind", weights())
def test_codes_and_scales_are_those_of_the_gguf_package(layout, kind):
    weight = weights()[kind]
    spec = parse_scheme(layout).weight
    codes, scale, minimum = fields_of(gguf.quants.quantize(weight, TYPES[layout]), layout)
    ours = quantize_weight(torch.from_numpy(weight), spec)
    assert np.array_equal(ours.scale[..., 0].numpy().astype(np.float16).view(np.uint16), scale.view(np.uint16))
    assert np.array_equal(ours.codes.numpy(), codes)
    if minimum is not None:
        assert np.array_equal(ours.minimum[..., 0].numpy().astype(np.float16), minimum)


@pytest.mark.parametrize("layout", TYPES)
def test_dequantized_weights_are_those_of_the_gguf_package(layout):
    weight = weights()["normal"]
    stored = gguf.quants.quantize(weight, TYPES[layout])
    expected = gguf.quants.dequantize(stored, TYPES[layout])
    ours = dequantize_weight(quantize_weight(torch.from_numpy(weight), parse_scheme(layout).weight), weight.shape)
    assert np.array_equal(ours.numpy(), expected)


@pytest.mark.parametrize(("layout", "bytes_per_block"), [("q8_0", 34), ("q4_0", 18), ("q4_1", 20)])
def test_bits_per_weight_are_those_of_ggmls_block(layout, bytes_per_block):
    assert parse_scheme(layout).weight.bits_per_weight(256) == bytes_per_block * 8 / 32
