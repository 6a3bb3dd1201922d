"""Answers by torch: as the model alone would give them, whoever else asks at the same time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from edgequant import models
from edgequant.evaluation.backends.generation import BatchDecoding
from edgequant.evaluation.backends.token_losses import LMHead
from edgequant_registry.serving.refusal import BadRequestError, UnansweredError
from edgequant_registry.serving.requests import parse
from edgequant_registry.serving.rows import choose
from edgequant_registry.serving.threads import threads_of_a_worker
from edgequant_registry.serving.torch_engine import MOST_ROWS, TorchEngine
from edgequant_registry.serving.waiting import Waiting

PROMPTS = ["The water is", "Boil", "In the camp, the children and", "A", "A bowser of 5,000 litres serves"]
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|endoftext|>{% endfor %}"


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Any:
    return models.load(str(checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TorchEngine:
    return TorchEngine(checkpoint)


@pytest.fixture(scope="module")
def chatting(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    """With a chat template, which comes beside the checkpoint's files."""
    from edgequant.files import sha256_of
    from edgequant.models.manifest import list_file

    folder = tmp_path_factory.mktemp("chatting") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    template = TEMPLATE + "{% if messages[0].role == 'assistant' %}{{ raise_exception('a user begins') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    list_file(folder, "chat_template.jinja", sha256_of(folder / "chat_template.jinja"))
    return TorchEngine(folder)


def ask(engine: Any, sent: dict[str, Any], **waiting: Any) -> Any:
    return engine.answer(parse(sent), Waiting(**waiting))


def alone(loaded: Any, prompt: str, tokens: int) -> list[int]:
    """Greedily, by transformers."""
    encoded = loaded.tokenizer(prompt, return_tensors="pt")
    found = loaded.model.generate(**encoded, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return found[0, encoded["input_ids"].shape[1] :].tolist()


def test_an_answer_is_what_the_model_says_alone_and_its_usage_counts_tokens(engine: Any, loaded: Any) -> None:
    (answer,) = ask(engine, {"prompt": PROMPTS[0], "max_tokens": 6})
    tokens = alone(loaded, PROMPTS[0], 6)
    assert answer.text == loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    assert (answer.prompt_tokens, answer.completion_tokens) == (len(loaded.tokenizer(PROMPTS[0]).input_ids), 6)
    assert answer.finish_reason == "length"


def test_who_joins_a_batch_later_changes_no_answer(engine: Any, loaded: Any) -> None:
    """Twelve rows of three lengths, more than a batch holds: rows leave and others join all the while."""
    asked = [(prompt, tokens) for tokens in (4, 24, 9) for prompt in PROMPTS[:4]]
    assert len(asked) > MOST_ROWS
    with ThreadPoolExecutor(len(asked)) as pool:
        requests = [parse({"prompt": prompt, "max_tokens": tokens}) for prompt, tokens in asked]
        answers = list(pool.map(lambda each: engine.answer(each, Waiting()), requests))
    expected = [loaded.tokenizer.decode(alone(loaded, *each), skip_special_tokens=True) for each in asked]
    assert [answer.text for (answer,) in answers] == expected


@torch.inference_mode()
def test_logits_behind_joined_rows_are_those_of_each_alone_and_what_no_row_needs_is_cut_off(loaded: Any) -> None:
    def beginning(*prompts: list[int]) -> tuple[BatchDecoding, torch.Tensor]:
        decoding = BatchDecoding(loaded.model, LMHead(loaded.model), torch.device("cpu"))
        return decoding, decoding.prefill(prompts)

    long, short, later = list(range(5, 45)), [7, 9, 11], [60, 3, 80, 81, 5]
    decoding, _ = beginning(long, short)
    decoding.step(torch.tensor([1, 2]))
    decoding.keep(torch.tensor([1]))
    added, _ = beginning(later)
    decoding.join(added)
    found = decoding.step(torch.tensor([33, 44]))
    for logits, tokens in zip(found, ([*short, 2, 33], [*later, 44]), strict=True):
        torch.testing.assert_close(logits, loaded.model(torch.tensor([tokens])).logits[0, -1], atol=1e-4, rtol=1e-4)
    assert decoding.cache.get_seq_length() == len(later) + 1


def test_an_answer_ends_before_a_text_of_stop_and_says_so(engine: Any) -> None:
    (whole,) = ask(engine, {"prompt": PROMPTS[2], "max_tokens": 12, "temperature": 1.5, "seed": 1})
    stop = whole.text[4:6]
    (cut,) = ask(engine, {"prompt": PROMPTS[2], "max_tokens": 12, "temperature": 1.5, "seed": 1, "stop": [stop]})
    assert cut.text == whole.text[: whole.text.find(stop)] and cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens


def test_a_seed_repeats_what_is_drawn(engine: Any) -> None:
    texts = {
        seed: [ask(engine, {"prompt": "A", "max_tokens": 8, "temperature": 1, "seed": seed})[0].text for _ in "ab"]
        for seed in (1, 2)
    }
    assert texts[1][0] == texts[1][1] != texts[2][0] == texts[2][1]


def test_a_nucleus_holds_the_fewest_tokens_that_reach_top_p() -> None:
    """Probabilities 0.5, 0.3, 0.2: for 0.6 the first two, each as often as its share of 0.8."""
    logits, generator = torch.tensor([0.2, 0.5, 0.3]).log(), torch.Generator().manual_seed(0)
    drawn = Counter(choose(logits, 1.0, 0.6, generator) for _ in range(2000))
    assert set(drawn) == {1, 2} and drawn[1] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)
    assert {choose(logits, 1.0, 0.5, generator) for _ in range(50)} == {1}
    assert {choose(logits, 1e-9, 1.0, generator) for _ in range(50)} == {choose(logits, 0.0, 1.0, None)} == {1}


def test_a_chat_goes_through_the_template_and_ends_where_the_template_ends_a_turn(chatting: Any, loaded: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    (answer,) = ask(chatting, {"messages": messages, "max_tokens": 5})
    written = "<|system|>Be brief.<|endoftext|><|user|>Where?<|endoftext|><|assistant|>"
    (same,) = ask(chatting, {"prompt": written, "max_tokens": 5})
    assert answer == same
    assert loaded.tokenizer.convert_tokens_to_ids("<|endoftext|>") in chatting._text.ends
    with pytest.raises(BadRequestError, match="chat template refuses these messages: a user begins"):
        ask(chatting, {"messages": [{"role": "assistant", "content": "Hello"}]})


def test_what_the_model_cannot_answer_is_refused(engine: Any) -> None:
    with pytest.raises(BadRequestError, match="this one has none; send a prompt"):
        ask(engine, {"messages": [{"role": "user", "content": "Where?"}]})
    with pytest.raises(BadRequestError, match=r"the prompt has 2048 tokens, .* must fit a context of 2048"):
        ask(engine, {"prompt": "a" * 2048})
    (answer,) = ask(engine, {"prompt": "a" * 2040, "max_tokens": 50})
    assert answer.completion_tokens == 8 and answer.finish_reason == "length"


def test_what_no_tokens_could_make_short_enough_is_not_cut_into_tokens(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any) -> None:
        raise AssertionError("a text of megabytes was cut into tokens")

    with monkeypatch.context() as patch:
        patch.setattr(type(engine._text._tokenizer), "__call__", cut)
        with pytest.raises(BadRequestError, match=r"at least \d+ tokens, .* must fit a context of 2048"):
            ask(engine, {"prompt": "Water " * 500_000})


def test_rows_wait_that_would_make_a_batch_too_large(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows of 100 tokens where 250 fit: two at a time."""
    monkeypatch.setattr("edgequant_registry.serving.torch_engine.MOST_TOKENS", 250)
    sizes, step = set(), BatchDecoding.step
    monkeypatch.setattr(BatchDecoding, "step", lambda self, tokens: sizes.add(len(tokens)) or step(self, tokens))
    answers = ask(engine, {"prompt": ["a" * 90] * 7 + ["b" * 400], "max_tokens": 10})
    assert [one.completion_tokens for one in answers] == [10] * 8 and sizes == {1, 2}


def test_an_error_while_decoding_is_told_and_the_next_request_is_answered(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr("edgequant_registry.serving.torch_engine.BatchDecoding.prefill", broken)
        with pytest.raises(RuntimeError, match="no memory left"):
            ask(engine, {"prompt": "A"})
    assert ask(engine, {"prompt": "A", "max_tokens": 2})


def test_clients_bring_no_threads_of_their_own(engine: Any) -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda sent: ask(engine, sent), [{"prompt": "A", "max_tokens": 3}] * 12))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arguments", "variables", "threads"),
    [
        (["uvicorn", "--workers", "1", "app"], {}, 8),
        (["uvicorn", "--port", "1", "--workers", "4", "app"], {}, 2),
        (["uvicorn", "--workers", "100"], {}, 1),
        (["python"], {"WEB_CONCURRENCY": "2"}, 4),
        (["python"], {"OMP_NUM_THREADS": "3"}, 3),
        (["uvicorn", "--workers", "4"], {"OMP_NUM_THREADS": "3"}, 2),
    ],
)
def test_a_servers_processes_share_the_cores(
    arguments: list[str], variables: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr("edgequant_registry.serving.threads.physical_cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert threads_of_a_worker() == threads


ENDING = """
import sys, threading, time
from pathlib import Path
from edgequant_registry.serving.requests import parse
from edgequant_registry.serving.waiting import Waiting
from edgequant_registry.serving.torch_engine import TorchEngine
from edgequant_registry.serving.waiting import Waiting

engine = TorchEngine(Path(sys.argv[1]))
asked = [parse({"prompt": text, "max_tokens": 100, "temperature": 2.0, "seed": 1}) for text in ("A", "Boil", "Water")]
for request in asked:
    threading.Thread(target=lambda: engine.answer(request, Waiting()), daemon=True).start()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.long
@pytest.mark.parametrize("after", [0.05, 0.15])
def test_a_process_may_end_while_it_decodes(checkpoint: Path, after: float) -> None:
    """An interpreter takes daemon threads away where they are; one taken away inside torch aborts the process."""
    command = [sys.executable, "-c", ENDING, str(checkpoint), str(after)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def test_who_asks_an_engine_that_has_ended_is_told(checkpoint: Path) -> None:
    engine = TorchEngine(checkpoint)
    engine.close()
    with pytest.raises(UnansweredError, match="ending"):
        ask(engine, {"prompt": "Boil", "max_tokens": 3})
