"""Any transformers causal model (plain, PEFT, bitsandbytes, edgequant checkpoint) behind the evaluation's interface."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgequant import models
from edgequant.errors import UserError
from edgequant.evaluation.backends import decoding, generation
from edgequant.evaluation.backends.batching import batches_by_length, run_within_memory, tokens_that_fit
from edgequant.evaluation.backends.footprint import footprint_metrics
from edgequant.evaluation.backends.language_model import Choice, DecodeTiming, Generated, Window
from edgequant.evaluation.backends.prefix_sharing import Group, batches_of_groups, groups_by_prefix, worth_sharing
from edgequant.evaluation.backends.token_losses import LMHead, logit_losses, token_losses
from edgequant.evaluation.backends.tokenized import WithTokenizer, bos_token

# A decorator that keeps cuDNN's attention out: it plans anew for every shape, and each batch and each step has its own.
with_shape_agnostic_attention = sdpa_kernel(
    [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
)


class TransformersModel(WithTokenizer):
    """Scores and generates with a transformers model on the device it is on.

    Args:
        model: a causal language model; it is put into evaluation mode.
        tokenizer: its tokenizer.
        bos: `auto` begins sequences with BOS where the tokenizer does so itself, and for Gemma, whose scores are
            meaningless without it; `always` and `never` override.
        max_batch_tokens: tokens per forward pass, padding included; None finds it by memory.

    Raises:
        UserError: BOS is asked for and the tokenizer has none.
    """

    def __init__(self, model: Any, tokenizer: Any, *, bos: str = "auto", max_batch_tokens: int | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        self.device = _device_of(model)
        self.on_gpu = self.device.type == "cuda"
        self.context_length = int(getattr(self.config, "max_position_embeddings", None) or 2048)
        self.vocabulary = int(self.config.vocab_size)
        self.bos = bos_token(tokenizer, str(getattr(self.config, "model_type", "")), bos)
        self.start_token = next(
            t for t in (self.bos, tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if t is not None
        )
        self._head = LMHead(model)
        self._asked_tokens = max_batch_tokens

    @property
    def description(self) -> dict[str, str]:
        return {
            "model": type(self.model).__name__,
            "dtype": str(getattr(self.model, "dtype", None) or "mixed").removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu",
            "threads": str(torch.get_num_threads()),
            "bos": str(self.bos),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def decode_methods(self) -> tuple[str, ...]:
        return decoding.methods(self.model)

    def losses(self, windows: Sequence[Window]) -> Iterator[tuple[int, float]]:
        def score(indices: list[int]) -> list[float]:
            batch = [windows[index] for index in indices]
            # The hidden state at position p predicts token p + 1; the last token is only ever predicted.
            counts = [w.scored for w in batch]
            firsts = [len(w.tokens) - w.scored - 1 for w in batch]
            targets = [token for w in batch for token in w.tokens[len(w.tokens) - w.scored :]]
            values = self._token_losses(
                [w.tokens[:-1] for w in batch], *_scored_positions(range(len(batch)), firsts, counts), targets
            )
            return [float(part.sum()) for part in values.split(counts)]

        yield from self._in_batches([len(window.tokens) for window in windows], score)

    def log_likelihoods(self, choices: Sequence[Choice]) -> Iterator[tuple[int, tuple[float, ...]]]:
        def score(indices: list[int]) -> list[tuple[float, ...]]:
            return self._choice_scores([choices[index] for index in indices])

        yield from self._in_batches([choice.longest + 1 for choice in choices], score)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
        groups = groups_by_prefix(prompts)
        if generation.can_share_prefixes(self.model) and worth_sharing(prompts, groups):
            yield from self._generate_groups(prompts, groups, max_new_tokens)
            return

        def answer(indices: list[int]) -> list[Generated]:
            batch = [prompts[index] for index in indices]
            with torch.no_grad():
                rows = generation.greedy(self.model, self._head, batch, self._stop, max_new_tokens)
            return self._answers(rows)

        yield from self._in_batches([len(prompt) + max_new_tokens for prompt in prompts], answer)

    def _generate_groups(
        self, prompts: Sequence[Sequence[int]], groups: list[Group], max_new_tokens: int
    ) -> Iterator[tuple[int, Generated]]:
        for batch in batches_of_groups(prompts, groups, max_new_tokens, self.max_batch_tokens):

            def answer(chosen: list[int], batch: list[Group] = batch) -> list[tuple[int, Generated]]:
                parts = [batch[at] for at in chosen]
                with torch.no_grad():
                    rows = generation.greedy_in_groups(
                        self.model, self._head, prompts, parts, self._stop, max_new_tokens
                    )
                members = [index for group in parts for index in group.members]
                return list(zip(members, self._answers(rows), strict=True))

            for _, answered in run_within_memory(with_shape_agnostic_attention(answer), list(range(len(batch)))):
                yield from answered

    def decode_timings(
        self, method: str, prompt_length: int, batch_size: int, new_tokens: int, repetitions: int, seed: int
    ) -> Iterable[DecodeTiming]:
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(
            0, min(self.vocabulary, len(self.tokenizer)), (batch_size, prompt_length), generator=generator
        )
        return decoding.timings(self.model, prompt.to(self.device), method, new_tokens, repetitions)

    def footprint(self, checkpoint: Path | None = None) -> dict[str, float]:
        return footprint_metrics(self.model, checkpoint)

    def weights_digest(self) -> str:
        parts = (models.weights_digest(self.model), self._stop.nonzero().flatten().tolist(), _spelling(self.tokenizer))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @cached_property
    def _stop(self) -> torch.Tensor:
        config = getattr(self.model, "generation_config", None)
        return generation.stop_tokens(self.tokenizer, config, self.vocabulary).to(self.device)

    @cached_property
    def max_batch_tokens(self) -> int:
        """Tokens per forward pass; from the free memory and what one token's activations and cache take."""
        if self._asked_tokens:
            return self._asked_tokens
        hidden, layers = int(self.config.hidden_size), int(self.config.num_hidden_layers)
        inner = int(getattr(self.config, "intermediate_size", None) or 4 * hidden)
        return tokens_that_fit(self.device, 4 * (12 * hidden + 4 * inner + 2 * layers * hidden))

    def _in_batches(self, lengths: Sequence[int], run: Any) -> Iterator[tuple[int, Any]]:
        for batch in batches_by_length(lengths, self.max_batch_tokens):
            for indices, values in run_within_memory(with_shape_agnostic_attention(run), batch):
                yield from zip(indices, values, strict=True)

    def _choice_scores(self, choices: Sequence[Choice]) -> list[tuple[float, ...]]:
        """Continuations that share everything but their last token share one row of the batch."""
        rows: dict[tuple[int, ...], int] = {}
        pairs = [(choice.context, continuation) for choice in choices for continuation in choice.continuations]
        owners = [rows.setdefault(context + continuation[:-1], len(rows)) for context, continuation in pairs]
        counts = [len(continuation) for _, continuation in pairs]
        firsts = [len(context) - 1 for context, _ in pairs]
        targets = [token for _, continuation in pairs for token in continuation]
        values = self._token_losses(list(rows), *_scored_positions(owners, firsts, counts), targets)
        sums = iter([-float(part.sum()) for part in values.split(counts)])
        return [tuple(next(sums) for _ in choice.continuations) for choice in choices]

    @torch.no_grad()
    def _token_losses(
        self, rows: Sequence[Sequence[int]], owners: torch.Tensor, positions: torch.Tensor, targets: list[int]
    ) -> torch.Tensor:
        """Loss in nats of each target given its row, `owners` [n], up to and including `positions` [n]; float64, CPU.

        Rows are padded on the right: a causal model never looks there, so no mask is needed and nothing changes.
        """
        longest = max(map(len, rows))
        inputs = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows]).to(self.device)
        owners, positions = owners.to(self.device), positions.to(self.device)
        wanted = torch.tensor(targets).to(self.device)
        hidden = self._head.hidden(inputs)
        if hidden is None:
            logits = self.model(input_ids=inputs, use_cache=False).logits
            losses = logit_losses(logits[owners, positions], wanted)
        else:
            losses = token_losses(self._head, hidden[owners, positions], wanted)
        if bool(losses.isnan().any()):
            raise UserError(f"{type(self.model).__name__} gives NaN logits; its weights or activations are broken")
        return losses.double().cpu()

    def _answers(self, rows: list[list[int]]) -> list[Generated]:
        return [Generated(self.decode(row).split("\n")[0], len(row)) for row in rows]


def _scored_positions(
    owners: Sequence[int], firsts: Sequence[int], counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and position of counts[i] neighbours in row owners[i] from position firsts[i] on, for every i."""
    length = torch.tensor(counts)
    before = (length.cumsum(0) - length).repeat_interleave(length)
    positions = torch.tensor(firsts).repeat_interleave(length) + torch.arange(int(length.sum())) - before
    return torch.tensor(list(owners)).repeat_interleave(length), positions


def _spelling(tokenizer: Any) -> list[Any]:
    """What decides the text of an answer's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return [
        sorted(tokenizer.get_vocab().items()),
        sorted(number for number in tokenizer.all_special_ids if number is not None),
        sorted((number, str(token), token.special) for number, token in tokenizer.added_tokens_decoder.items()),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
        None if backend is None else json.loads(backend.to_str())["decoder"],
    ]


def _device_of(model: Any) -> torch.device:
    tensors = (*model.parameters(), *model.buffers())  # a quantised model may hold buffers only
    return next((tensor.device for tensor in tensors if tensor.device.type != "meta"), torch.device("cpu"))
