"""Answers by torch: what was sent at the same time is decoded as one batch, in one thread of its own.

One thread, since each thread that calls torch would bring a set of OpenMP threads of its own.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from edgequant import models
from edgequant.evaluation.backends.generation import BatchDecoding, can_share_prefixes
from edgequant.evaluation.backends.token_losses import LMHead
from edgequant_registry.serving.answers import Answer, Say
from edgequant_registry.serving.chat_text import ChatText
from edgequant_registry.serving.refusal import BadRequestError, server_ends, too_long
from edgequant_registry.serving.requests import Request
from edgequant_registry.serving.rows import Row
from edgequant_registry.serving.threads import threads_of_a_worker
from edgequant_registry.serving.waiting import Waiting

LAST_STEP_S = 4.0  # that an exiting process waits for the step it is in
MOST_ROWS = 8  # in a batch
MOST_TOKENS = 16_384  # of a batch's rows, padded to the longest; what does not fit waits. A longer row is one by itself


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
        self._waiting: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._rows: list[Row] = []
        self._next: Row | None = None  # the first that waits, where the batch has no room for it
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="edgequant-decoding", daemon=True)
        self._thread.start()
        # an interpreter takes its daemon threads away where they are; one taken away inside torch aborts the process
        atexit.register(self.close)

    def answer(self, request: Request, waiting: Waiting, say: Say | None = None) -> list[Answer]:
        prompts = (
            [self._text.of_chat(request.messages, self._context)]
            if request.messages
            else [self._text.encode(prompt, self._context) for prompt in request.prompts]
        )
        rows = [
            self._row(prompt, request, at, waiting, None if say is None else partial(say, at))
            for at, prompt in enumerate(prompts)
        ]
        for row in rows:
            self._waiting.put(row)
        if self._closed:
            self._refuse_waiting()
        return [row.result() for row in rows]

    def close(self) -> None:
        """End the decoding thread after the step it is in; whoever waits is told."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join(LAST_STEP_S)
        atexit.unregister(self.close)

    def _row(
        self, prompt: Sequence[int], request: Request, at: int, waiting: Waiting, say: Callable[[str], None] | None
    ) -> Row:
        if not prompt:
            raise BadRequestError("the prompt must have at least one token, got none")
        if self._context is not None and len(prompt) >= self._context:
            raise too_long(len(prompt), self._context)
        room = request.max_tokens if self._context is None else min(request.max_tokens, self._context - len(prompt))
        seed = None if request.seed is None else request.seed + at
        return Row(prompt, request, self._text, most=room, seed=seed, waiting=waiting, say=say)

    def _work(self) -> None:
        while not self._closed:
            try:
                self._decode()
            except Exception as error:  # whoever waits is told; the next request is tried again
                self._fail(error)
        self._fail(server_ends())
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        if self._next is not None:
            self._next.fail(server_ends())
        while not self._waiting.empty():
            with suppress(queue.Empty):
                if (row := self._waiting.get_nowait()) is not None:
                    row.fail(server_ends())

    def _fail(self, error: Exception) -> None:
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
        while not self._closed:
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
        """Those that have a place in the batch, in the order in which they came; `wait`s for the first."""
        found: list[Row] = []
        while len(self._rows) + len(found) < MOST_ROWS and not self._closed:
            self._next = self._next or self._first_waiting(wait=wait and not found)
            if self._next is None or not _fit([*self._rows, *found, self._next]):
                break
            if not self._next.late():
                found.append(self._next)
            self._next = None
        return found

    def _first_waiting(self, *, wait: bool) -> Row | None:
        try:
            return self._waiting.get(block=wait)
        except queue.Empty:
            return None


def _fit(rows: Sequence[Row]) -> bool:
    return len(rows) == 1 or len(rows) * max(row.longest for row in rows) <= MOST_TOKENS
