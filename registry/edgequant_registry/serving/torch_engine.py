"""Answers by torch: what was sent at the same time is decoded as one batch, in one thread of its own.

One thread, since each thread that calls torch would bring a set of OpenMP threads of its own.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from edgequant import models
from edgequant.evaluation.backends.generation import BatchDecoding, can_share_prefixes
from edgequant.evaluation.backends.token_losses import LMHead
from edgequant_registry.serving.answers import Answer
from edgequant_registry.serving.chat_text import ChatText
from edgequant_registry.serving.refusal import BadRequestError, too_long
from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.rows import Row
from edgequant_registry.serving.threads import threads_of_a_worker

MOST_ROWS = 8  # in a batch
TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"  # seconds after which MLflow's server has given its own answer


class TorchEngine:
    """The checkpoint as it was measured, in torch.

    Raises:
        UserError: a file is damaged, or the checkpoint cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(min(torch.get_num_threads(), threads_of_a_worker()))
        loaded = models.load(str(folder))
        self.name = "torch"
        self._model, self._text = loaded.model, ChatText(loaded.tokenizer, loaded.model.generation_config)
        self._head, self._may_join = LMHead(loaded.model), can_share_prefixes(loaded.model)
        self._context = models.context_length(str(folder))
        self._waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self._rows: list[Row] = []
        threading.Thread(target=self._work, name="edgequant-decoding", daemon=True).start()

    def answer(self, request: Request) -> list[Answer]:
        prompts = (
            [self._text.of_chat(request.messages)] if request.messages else map(self._text.encode, request.prompts)
        )
        rows = [self._row(prompt, request, at) for at, prompt in enumerate(prompts)]
        for row in rows:
            self._waiting.put(row)
        return [row.result() for row in rows]

    def _row(self, prompt: Sequence[int], request: Request, at: int) -> Row:
        if not prompt:
            raise BadRequestError("the prompt must have at least one token, got none")
        if self._context is not None and len(prompt) >= self._context:
            raise too_long(len(prompt), self._context)
        room = request.max_tokens if self._context is None else min(request.max_tokens, self._context - len(prompt))
        seed = None if request.seed is None else request.seed + at
        timeout = os.environ.get(TIMEOUT)
        deadline = time.monotonic() + float(timeout) if timeout else None
        return Row(prompt, request, self._text, most=room, seed=seed, deadline=deadline)

    def _work(self) -> None:
        while True:
            try:
                self._decode()
            except Exception as error:  # whoever waits is told; the next request is tried again
                for row in self._rows:
                    row.fail(error)
                self._rows = []

    @torch.inference_mode()
    def _decode(self) -> None:
        """From the first request until nobody waits."""
        self._rows = self._arrived(wait=True)
        if not self._rows:
            return
        decoding, logits = self._begun(self._rows)
        while True:
            tokens = [row.take(each) for row, each in zip(self._rows, logits, strict=True)]
            going_on = [at for at, row in enumerate(self._rows) if not row.done]
            if len(going_on) < len(self._rows):
                self._rows = [self._rows[at] for at in going_on]
                if not going_on:
                    return
                decoding.keep(torch.tensor(going_on, device=decoding.device))
            logits = decoding.step(torch.tensor([tokens[at] for at in going_on], device=decoding.device))
            logits = self._joined(decoding, logits)

    def _joined(self, decoding: BatchDecoding, logits: torch.Tensor) -> torch.Tensor:
        arrived = self._arrived(wait=False) if self._may_join else []
        if not arrived:
            return logits
        self._rows = [*self._rows, *arrived]
        added, first = self._begun(arrived)
        decoding.join(added)
        return torch.cat([logits, first])

    def _begun(self, rows: Sequence[Row]) -> tuple[BatchDecoding, torch.Tensor]:
        decoding = BatchDecoding(self._model, self._head, torch.device(self._model.device))
        return decoding, decoding.prefill([row.prompt for row in rows])

    def _arrived(self, *, wait: bool) -> list[Row]:
        found: list[Row] = [self._waiting.get()] if wait else []
        while len(found) + (0 if wait else len(self._rows)) < MOST_ROWS:
            try:
                found.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return [row for row in found if not row.late()]
