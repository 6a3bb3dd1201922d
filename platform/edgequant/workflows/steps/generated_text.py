"""Text that the model itself writes, for QAT (Liu et al. 2023, arXiv 2305.17888) and against forgetting.

As in their section 2.1 a sequence starts at a random token, goes on greedily for a few tokens, and is sampled from the
full distribution from there. The end-of-text token is never sampled, so that every row is full.

Replayed beside text that is to be learned, half of the rows start with a piece of that; half of these are a user's
message by the chat template, and an answer. There the end of an answer may be sampled: an instruction-tuned model goes
on with a message of its own and the answer to it (Magpie, Xu et al. 2024, arXiv 2406.08464). So it rehearses skills
that running text does not show (Huang et al. 2024, arXiv 2403.01244).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.errors import UserError
from edgequant.files import atomic_path, cache_dir
from edgequant.models.digest import weights_digest

if TYPE_CHECKING:
    from torch import Tensor

DRAWN = "by inverting the distribution, in a graph on a GPU"  # a change of how tokens are drawn is a change of the text
MAX_SEQUENCES = 8192  # a training that draws more begins again with the first
GREEDY_TOKENS = 4
CPU_BATCH, GPU_BATCH = 96, 1024  # rows at a time, at most; part of what a seed gives
CACHE_SHARE = 0.25  # of a GPU's memory, for the keys and values of the rows that are written at a time
PIECE = 32  # tokens of a passage, at most, that a row goes on behind or answers
MESSAGE = "passage-0f3a"  # stands for a piece where a template is rendered
MOST_BEGUN = 0.75  # of a row that is a message and not an answer
STAGE = 128  # tokens by which a preallocated cache grows: every step goes through all of it, empty or not


def generated_sequences(
    model: Any, tokenizer: Any, count: int, length: int, *, seed: int = 0, passages: Tensor | None = None
) -> Tensor:
    """Rows of tokens [n, length] int64 written by the model, n = count or MAX_SEQUENCES if that is less.

    The same weights, tokenizer, count, length, seed and passages find them in the cache folder (`generated/`).

    Args:
        model: causal language model in evaluation mode; itself, or where it is of another type than the device computes
            in, a copy that is not.
        length: tokens per row, with the beginning-of-sequence token where the tokenizer adds one.
        passages: token rows [m, k] of texts by others, int64. A quarter of the rows then goes on behind a piece of
            them, and a quarter answers one that a user said, where the tokenizer has a chat template.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from edgequant import models
    from edgequant.models.same_function.integers_of_bitsandbytes import holds_integers
    from edgequant.progress import Progress

    count = min(count, MAX_SEQUENCES)
    first = text_tokens(tokenizer, model)
    device = next(model.parameters()).device
    dtype, batch = models.pick_dtype("auto", str(device)), _batch(model.config, length, device)
    kinds = _kinds(tokenizer, length, passages)
    pieces = "" if passages is None else hashlib.sha256(passages.numpy().tobytes()).hexdigest()
    writer = model if holds_integers(model) or str(model.dtype) == f"torch.{dtype}" else _cast_copy(model, dtype)
    how = (count, length, seed, GREEDY_TOKENS, DRAWN, batch, dtype)
    what = repr((weights_digest(writer), kinds, pieces, first.tolist(), *how))
    path = cache_dir() / "generated" / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        print(f"generated text: reused {count} sequences from {path}", flush=True)
        return load_file(path)["tokens"].long()
    rows = torch.empty(count, length, dtype=torch.int32)
    with Progress(count, "generated text", "sequence") as bar:
        for kind in dict.fromkeys(kinds):
            mine = torch.tensor([at for at in range(count) if kinds[at % len(kinds)] == kind], dtype=torch.int64)
            for places in mine.split(batch) if len(mine) else ():
                drawn = seed * MAX_SEQUENCES + int(places[0])
                rows[places] = _rows(writer, kind, first, passages, len(places), length, seed=drawn).cpu().int()
                bar.update(len(places))
    with atomic_path(path) as temporary:
        save_file({"tokens": rows}, temporary)
    print(f"generated text: wrote {count} sequences to {path}", flush=True)
    return rows.long()


def _cast_copy(model: Any, dtype: str) -> Any:
    """A copy in another type, beside which there is never one in the model's own."""
    import torch

    from edgequant import models

    kind = getattr(torch, dtype)
    smaller = {
        id(weight): torch.nn.Parameter(weight.detach().to(kind), requires_grad=False)
        for weight in model.parameters()
        if weight.is_floating_point()
    }
    return models.cast(copy.deepcopy(model, smaller), dtype)


def _batch(config: Any, length: int, device: Any) -> int:
    """Rows at a time, a power of two on a GPU: a step of generation costs a few of them nearly what it costs many."""
    import torch

    if device.type != "cuda":
        return CPU_BATCH
    heads = int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kept = int(getattr(config, "num_key_value_heads", None) or heads) * head * int(config.num_hidden_layers)
    room = CACHE_SHARE * torch.cuda.get_device_properties(device).total_memory
    fitting = room / (2 * 2 * kept * length)  # keys and values, two bytes each
    return max(1, min(GPU_BATCH, 2 ** int(math.log2(max(1.0, fitting)))))


class _Kind(NamedTuple):
    """How rows begin: tokens before and behind a piece of a passage of so many tokens; 0: behind any token of text."""

    before: tuple[int, ...]
    piece: int
    behind: tuple[int, ...]
    ends: bool = False  # whether the token that ends an answer may be drawn


def _kinds(tokenizer: Any, length: int, passages: Tensor | None) -> list[_Kind]:
    """In turn, row by row."""
    begin = tuple(_beginning(tokenizer))
    plain = _Kind(begin, 0, ())
    piece = min(PIECE, length // 4)
    if passages is None or not len(passages) or piece < 1:
        return [plain]
    goes_on = _Kind(begin, piece, ())
    return [plain, goes_on, plain, _answer(tokenizer, piece, length) or goes_on]


def _answer(tokenizer: Any, piece: int, length: int) -> _Kind | None:
    """A user's message and the beginning of an answer, by the chat template; None where there is none that takes
    one message as it is, or no room."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [{"role": "user", "content": MESSAGE}]
    try:
        rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return None
    around = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in rendered.split(MESSAGE)]
    if len(around) != 2 or len(around[0]) + piece + len(around[1]) > length * MOST_BEGUN:
        return None
    return _Kind(around[0], piece, around[1], ends=True)


def _begun(kind: _Kind, first: Tensor, passages: Tensor | None, size: int) -> Tensor:
    """The beginnings of so many rows [size, k]."""
    import torch

    def repeated(tokens: tuple[int, ...]) -> Tensor:
        return torch.tensor([tokens] * size, dtype=torch.int64).view(size, -1)

    if passages is None or not kind.piece:
        piece = first[torch.randint(len(first), (size, 1))]
    else:
        at = torch.randint(passages.shape[1] - kind.piece + 1, (size, 1)) + torch.arange(kind.piece)
        piece = passages[torch.randint(len(passages), (size, 1)), at]
    return torch.cat([repeated(kind.before), piece, repeated(kind.behind)], 1)


def _beginning(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token where the tokenizer itself puts it before text (Llama, Gemma)."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def text_tokens(tokenizer: Any, model: Any) -> Tensor:
    """Every token that text can be made of: [n] int64."""
    import torch

    special = set(tokenizer.all_special_ids) | {id for id, t in tokenizer.added_tokens_decoder.items() if t.special}
    vocabulary = min(len(tokenizer), int(model.config.vocab_size))  # models pad theirs with tokens that mean nothing
    return torch.tensor([token for token in range(vocabulary) if token not in special])


def _rows(
    model: Any, kind: _Kind, first: Tensor, passages: Tensor | None, size: int, length: int, *, seed: int
) -> Tensor:
    import torch

    from edgequant.evaluation.backends.decoding import methods

    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        tokens = _begun(kind, first, passages, size).to(device)
        draw = _Draw(None if kind.ends else model.generation_config.eos_token_id, device)
        if not kind.piece:
            tokens = _continued(model, tokens, min(length, tokens.shape[1] + GREEDY_TOKENS))
        in_graph = device.type == "cuda" and "static" in methods(model) and not getattr(model, "is_quantized", False)
        if in_graph:
            tokens = _continued_in_a_graph(model, tokens, length, draw)
        else:
            tokens = _continued(model, tokens, length, draw)
    draw.check()
    return tokens


def _continued(model: Any, tokens: Tensor, length: int, draw: _Draw | None = None) -> Tensor:
    """Rows of tokens with what `generate` puts behind them: the likeliest ones, or as they are drawn."""
    count = length - tokens.shape[1]
    if count <= 0:
        return tokens
    return model.generate(  # type: ignore[no-any-return]
        tokens,
        attention_mask=tokens.new_ones(tokens.shape),
        max_new_tokens=count,
        min_new_tokens=count,
        repetition_penalty=1.0,
        **({} if draw is None or len(draw.ends) else {"eos_token_id": int(model.config.vocab_size)}),  # none there is
        do_sample=False,
        logits_processor=[] if draw is None else [draw.leave_one],
    )


def _continued_in_a_graph(model: Any, tokens: Tensor, length: int, draw: _Draw) -> Tensor:
    """The same through preallocated caches and, where their layers allow, a CUDA graph for each: `generate` keeps a GPU
    waiting for the host most of the time."""
    import torch

    from edgequant.evaluation.backends.decoding import StaticDecoder

    while (there := tokens.shape[1]) < length:
        end = min(length, there + STAGE)
        decoder = StaticDecoder(model, end, draw)
        tokens = torch.cat([tokens, decoder.begin(tokens), decoder.advance(end - there - 1)], 1)
    return tokens


class _Draw:
    """Draws a token for each row, never one that ends text, by one random number each. (`do_sample` draws one for each
    token of the vocabulary, a quarter of the time that SmolLM2 takes to write on a CPU.)"""

    def __init__(self, ends: int | Sequence[int] | None, device: Any) -> None:
        import torch

        self.ends = torch.tensor([] if ends is None else ends, dtype=torch.int64, device=device).reshape(-1)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """The token [rows, 1] for logits [rows, vocabulary]; nothing waits for the device."""
        import torch

        cumulative = logits.float().index_fill(1, self.ends, -torch.inf).softmax(-1).cumsum(-1)
        whole = cumulative[:, -1:].contiguous()
        self.finite.logical_and_(torch.isfinite(whole).all())
        drawn = torch.minimum(torch.rand_like(whole) * whole, whole.nextafter(torch.zeros_like(whole)))
        # The first token whose probability takes the sum beyond what was drawn: never one that has none.
        token = torch.searchsorted(cumulative, drawn, right=True)
        return token.clamp(max=logits.shape[1] - 1)  # beyond it where nothing is finite

    def leave_one(self, _tokens: Tensor, logits: Tensor) -> Tensor:
        """Logits [rows, vocabulary] with one token left for each row, as `generate` takes them."""
        import torch

        return torch.full_like(logits, -torch.inf).scatter_(-1, self(logits), 0.0)

    def check(self) -> None:
        """Refuse what was drawn by logits that were not finite."""
        if not bool(self.finite):
            raise UserError(
                "the model's predictions of the next token are not finite: it cannot write text; check its weights"
            )
