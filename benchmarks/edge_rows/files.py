"""Which files are compared, and how each of them is made: by our export, or by llama.cpp's own quantiser."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

QUANTIZER = Path(__file__).resolve().parent.parent / "peers" / "llama_cpp_quantizer.py"
F16, WITH_MATRIX, PTQ, QAT, ONNX, QAT_ONNX = "F16", "Q4_0-imatrix", "PTQ", "QAT", "ONNX", "QAT-ONNX"
THEIRS = (F16, "Q4_0", WITH_MATRIX, "Q4_K_M", "Q8_0")
OURS = (PTQ, ONNX, QAT, QAT_ONNX)
TRAINED = (QAT, QAT_ONNX)
IN_ONNX_RUNTIME = (ONNX, QAT_ONNX)


class Key(NamedTuple):
    """One row of the table under one seed; what has none has seed 0. Of our PTQ: of one scheme."""

    system: str
    seed: int
    scheme: str = ""

    @property
    def label(self) -> str:
        """The row's first cell."""
        return f"{self.system} {self.scheme}".rstrip()


def planned(options: argparse.Namespace) -> list[Key]:
    """The rows that the options ask for, and that can be made."""
    trained = range(len(options.checkpoint))
    seeds = dict.fromkeys((WITH_MATRIX, PTQ, ONNX), options.seeds) | dict.fromkeys(TRAINED, trained)
    schemes = {PTQ: options.schemes, ONNX: [options.onnx_scheme]}
    made = [name for name in options.rows if name in (F16, *OURS) or options.quantizer]
    if left := [name for name in options.rows if name not in made]:
        print(f"without --quantizer there is no {', '.join(left)}", file=sys.stderr)
    return [
        Key(name, seed, scheme) for name in made for scheme in schemes.get(name, [""]) for seed in seeds.get(name, [0])
    ]


class Files:
    """Makes a row's file where it is not there yet."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.keep / "files"
        self.folder.mkdir(parents=True, exist_ok=True)

    def name(self, key: Key) -> str:
        """The row's name among files and rows: what it was made of, in short."""
        made = ""
        if key.system in TRAINED:
            made = f"-{_digest(str(Path(self.options.checkpoint[key.seed]).resolve()))}"
        elif key.system in (PTQ, ONNX):
            made = f"-{key.scheme}-{self.options.method}-{self._calibrated}"
        elif key.system == WITH_MATRIX:
            made = f"-{self._calibrated}"
        return f"{Path(self.options.model).name}-{key.system}{made}-{key.seed}"

    @property
    def _calibrated(self) -> str:
        """On which text, and where: what `auto` is depends on the device."""
        return _digest(
            repr([getattr(self.options, name) for name in ("dataset", "sequences", "sequence_length", "device")])
        )

    def file(self, key: Key) -> Path:
        """The row's .gguf file, or its ONNX folder."""
        path = self.folder / f"{self.name(key)}{'' if key.system in IN_ONNX_RUNTIME else '.gguf'}"
        if not path.exists():
            print(f"making {path.name}", flush=True)
            self._make(key, path)
        return path

    def _make(self, key: Key, path: Path) -> None:
        if key.system == F16:
            self._export(self.loaded, path, "f16")
        elif key.system in TRAINED:
            self._ship(key, self._load(self.options.checkpoint[key.seed]), path)
        elif key.system in (PTQ, ONNX):
            self._quantize(key, path)
        else:
            self._by_llama_cpp(key, path)

    @cached_property
    def loaded(self) -> Any:
        """The model as it came, in float32."""
        return self._load(self.options.model, "float32", self.options.device)

    def calibration(self, seed: int) -> Any:
        """Token sequences [n, length] of the calibration text, drawn by the seed."""
        import torch

        from edgequant.corpora.packing import pack
        from edgequant.workflows.steps.data import training_texts

        texts = training_texts(self.options.dataset, self.options.data_dir)
        rows = pack(texts, self.loaded.tokenizer, self.options.sequence_length)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return rows[order[: self.options.sequences]]

    def _load(self, name: str, dtype: str = "auto", device: str = "cpu") -> Any:
        from edgequant import models

        return models.load(name, dtype=dtype, device=device)

    def _export(self, loaded: Any, path: Path, form: str | None = None) -> None:
        from edgequant.export.choice import choose_target
        from edgequant.export.gguf.write import write_gguf
        from edgequant.export.shipped import scheme_of

        write_gguf(loaded, path, form or choose_target(scheme_of(loaded)))

    def _quantize(self, key: Key, path: Path) -> None:
        import copy

        from edgequant.quantization import checkpoint
        from edgequant.quantization.ptq.quantize import quantize
        from edgequant.quantization.scheme import parse_scheme

        scheme, model = parse_scheme(key.scheme), copy.deepcopy(self.loaded.model)
        quantize(model, scheme, calibration=[self.calibration(key.seed).to(model.device)], method=self.options.method)
        folder = path.with_name(f"{self.name(key)}-checkpoint")
        parameters = sum(parameter.numel() for parameter in self.loaded.model.parameters())
        checkpoint.save(model, self.loaded.tokenizer, folder, scheme, parameters=parameters, made_from=key.system)
        self._ship(key, self._load(str(folder)), path)

    def _ship(self, key: Key, made: Any, path: Path) -> None:
        """In the form that keeps a quantised model's integers, of the runtime that the row is of."""
        from edgequant.export.onnx.write import write_onnx

        if key.system in IN_ONNX_RUNTIME:
            write_onnx(made, path)
        else:
            self._export(made, path)

    def _by_llama_cpp(self, key: Key, path: Path) -> None:
        partial = path.with_suffix(".partial")
        kind = key.system.partition("-")[0]
        command = [str(self.options.quantizer), str(QUANTIZER), str(self.file(Key(F16, 0))), str(partial), kind]
        if key.system == WITH_MATRIX:
            command += ["--imatrix", str(self._importance(key.seed))]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{ended.stdout[-1000:]}{ended.stderr[-1000:]}")
        partial.replace(path)

    def _importance(self, seed: int) -> Path:
        from peers.importance_matrix import importance_matrix, write_importance

        sequences = self.calibration(seed)
        file = self.folder / f"{Path(self.options.model).name}-{self._calibrated}-{seed}.imatrix"
        write_importance(importance_matrix(self.loaded.model, sequences), file, len(sequences))
        return file


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
