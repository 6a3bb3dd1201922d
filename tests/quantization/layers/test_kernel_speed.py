"""A kernel for bfloat16 inputs is used where it is faster than unpacking, as timed."""

from __future__ import annotations

import os
import time

import pytest
import torch

from edgequant.quantization.layers.unpacking import kernel_speed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_remembered():
    remembered = (kernel_speed._is_int4_faster, kernel_speed._is_int8_faster)
    for timing in remembered:
        timing.cache_clear()
    yield
    for timing in remembered:
        timing.cache_clear()


@pytest.mark.parametrize(
    ("question", "slow", "fast"),
    [
        ("reads_integers_fast", "int4_kernel", False),
        ("reads_integers_fast", "unpack_int4", True),
        ("multiplies_int8_fast", "int8_kernel", False),
        ("multiplies_int8_fast", "exact_int8_product", True),
    ],
)
def test_what_takes_longer_is_left_out(question, slow, fast, monkeypatch):
    real = getattr(kernel_speed, slow)
    monkeypatch.setattr(kernel_speed, slow, lambda *arguments: time.sleep(0.1) or real(*arguments))
    assert getattr(kernel_speed, question)(CPU) is fast


def test_it_is_timed_once(monkeypatch):
    calls = []
    real = kernel_speed.int4_kernel
    monkeypatch.setattr(kernel_speed, "int4_kernel", lambda *arguments: calls.append(1) or real(*arguments))
    found = {kernel_speed.reads_integers_fast(CPU) for _ in range(3)}
    assert len(found) == 1 and len(calls) == kernel_speed.REPETITIONS


def test_without_an_unpacking_to_trust_the_kernel_is_used(monkeypatch):
    monkeypatch.setattr(kernel_speed, "is_trusted", lambda *_: False)
    assert kernel_speed.reads_integers_fast(CPU)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2") and "ATEN_CPU_CAPABILITY" not in os.environ,
    reason="of other CPUs nothing is known",
)
def test_pytorchs_vector_code_is_fast_and_its_scalar_code_slow():
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2")
    assert kernel_speed.reads_integers_fast(CPU) is vectors
