"""Text that the model itself writes: what it looks like, that it is remembered, and which workflows take it."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from edgequant import models, tracking
from edgequant.corpora.disaster.corpus import bundled_documents
from edgequant.errors import UserError
from edgequant.models.digest import weights_digest
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.qat import qat
from edgequant.workflows.settings import RunSettings
from edgequant.workflows.steps import generated_text
from edgequant.workflows.steps.data import evaluation_data, training_texts
from edgequant.workflows.steps.generated_text import GREEDY_TOKENS, generated_sequences
from edgequant.workflows.steps.sequences import split_sequences, training_sequences
from edgequant.workflows.steps.text_mix import check_dataset

NOTHING: dict = {}


@pytest.fixture
def sure(tiny):
    """Its distribution is far from uniform, so that greedy and sampled tokens differ from random ones."""
    with torch.no_grad():
        tiny.model.model.norm.weight.mul_(4)
    return tiny


def written(loaded, count: int = 40, length: int = 24, seed: int = 0) -> torch.Tensor:
    return generated_sequences(loaded.model, loaded.tokenizer, count, length, seed=seed)


def test_rows_are_full_and_hold_no_special_token(sure, cache):
    rows = written(sure)
    assert rows.shape == (40, 24) and rows.dtype == torch.int64
    assert not torch.isin(rows[:, 0], torch.tensor(sure.tokenizer.all_special_ids)).any()
    assert not (rows == sure.tokenizer.eos_token_id).any() and rows.max() < sure.model.config.vocab_size
    assert len(rows[:, 0].unique()) > 20  # first tokens are drawn from the whole vocabulary


def test_caches_that_grow_by_stages_give_the_same_rows_as_generate(sure, monkeypatch):
    monkeypatch.setattr(generated_text, "STAGE", 8)
    tokens, rows = torch.arange(20, 26)[:, None], []
    for go_on in (generated_text._continued, generated_text._continued_in_a_graph):
        torch.manual_seed(3)
        draw = generated_text._Draw(sure.model.generation_config.eos_token_id, "cpu")
        rows.append(go_on(sure.model, tokens, 24, draw))
        draw.check()
    assert torch.equal(*rows) and rows[0].shape == (6, 24)


@pytest.mark.gpu
def test_a_graph_s_rows_differ_and_are_the_same_again(sure, cache):
    sure.model.to("cuda")
    rows = written(sure, count=64)
    assert len({tuple(row) for row in rows.tolist()}) == 64
    for file in cache.rglob("*.safetensors"):
        file.unlink()
    assert torch.equal(written(sure, count=64), rows) and not torch.equal(written(sure, count=64, seed=1), rows)


def test_the_first_tokens_are_the_most_probable_and_the_later_ones_are_sampled(sure, cache):
    rows = written(sure, count=64)
    with torch.no_grad():
        logits = sure.model(input_ids=rows).logits
    logits[..., sure.tokenizer.eos_token_id] = -torch.inf
    predicted, rows_after = logits[:, :-1], rows[:, 1:]
    greedy = predicted.argmax(-1) == rows_after
    assert greedy[:, :GREEDY_TOKENS].all()
    later = predicted[:, GREEDY_TOKENS:]
    expected = torch.softmax(later, -1).amax(-1).mean()  # how often sampling picks the most probable token
    assert greedy[:, GREEDY_TOKENS:].float().mean() == pytest.approx(float(expected), abs=0.05)
    assert expected < 0.9


def test_a_model_whose_predictions_are_not_finite_writes_nothing(sure, cache):
    with torch.no_grad():
        sure.model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="predictions of the next token are not finite"):
        written(sure)


def test_the_same_seed_writes_the_same_and_leaves_the_callers_random_numbers_alone(sure, cache, monkeypatch, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = written(sure)
    assert torch.equal(torch.rand(3), expected)
    monkeypatch.setenv("EDGEQUANT_CACHE", str(tmp_path / "another"))
    assert torch.equal(written(sure), first)
    assert not torch.equal(written(sure, seed=1), first)


def test_what_was_written_is_read_by_later_runs(sure, cache, capsys, monkeypatch):
    first = written(sure)
    monkeypatch.setattr(sure.model, "generate", None)  # would fail if it were asked
    assert torch.equal(written(sure), first)
    assert "generated text: reused 40 sequences" in capsys.readouterr().out


def test_what_a_model_writes_does_not_hang_on_the_type_that_it_is_held_in(sure, cache, capsys, monkeypatch):
    """A copy in the device's type writes, beside which there is no second one in float32."""
    monkeypatch.setattr(models, "pick_dtype", lambda *_: "bfloat16")
    first = written(sure)
    assert sure.model.dtype == torch.float32
    smaller = models.cast(copy.deepcopy(sure.model), "bfloat16")
    monkeypatch.setattr(smaller, "generate", None)  # would fail if it were asked
    assert torch.equal(written(sure._replace(model=smaller)), first)
    made = generated_text._cast_copy(sure.model, "bfloat16")
    assert weights_digest(made) == weights_digest(smaller)
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_another_model_writes_another_text(sure, cache):
    first = written(sure)
    with torch.no_grad():
        sure.model.model.norm.weight[0] += 1.0
    assert not torch.equal(written(sure), first)
    assert len(list((cache / "generated").iterdir())) == 2


def test_rows_begin_as_the_tokenizer_begins_text(sure, cache):
    class Beginning:
        bos_token_id, all_special_ids, added_tokens_decoder = 7, [7, 256, 257], {}

        def __call__(self, text):
            return {"input_ids": [7, *sure.tokenizer(text)["input_ids"]]}

        def __len__(self):
            return len(sure.tokenizer)

    rows = generated_sequences(sure.model, Beginning(), 8, 12)
    assert (rows[:, 0] == 7).all() and not (rows[:, 1] == 7).any() and rows.shape == (8, 12)


class Chatting:
    """`tiny`'s tokenizer with a chat template of its own tokens."""

    chat_template = "there is one"

    def __init__(self, tokenizer):
        self.plain = tokenizer

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def __call__(self, text, **options):
        return self.plain(text, **options)

    def __len__(self):
        return len(self.plain)

    def apply_chat_template(self, turns, *, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return f"<{turns[0]['role']}>{turns[0]['content']}<assistant>"


def test_beside_a_text_half_of_the_rows_go_on_behind_pieces_of_it(sure, cache):
    passages = torch.arange(40, 120).view(2, 40)
    rows = generated_sequences(sure.model, sure.tokenizer, 60, 48, passages=passages)
    begun = rows[1::2, :12]  # a quarter of a row
    assert torch.equal(begun[:, 1:] - begun[:, :-1], torch.ones(30, 11, dtype=torch.int64))  # runs of the passages
    assert begun.min() >= 40 and begun.max() < 120 and len(begun[:, 0].unique()) > 10
    assert len(rows[::2, 0].unique()) > 20  # the others begin with any token, as without a text
    assert not (rows == sure.tokenizer.eos_token_id).any() and rows.shape == (60, 48)
    assert torch.equal(generated_sequences(sure.model, sure.tokenizer, 60, 48, passages=passages), rows)
    other = generated_sequences(sure.model, sure.tokenizer, 60, 48, passages=passages + 1)
    assert not torch.equal(other, rows)


def test_a_quarter_answers_a_message_where_there_is_a_chat_template_and_may_end(sure, cache):
    tokenizer, passages = Chatting(sure.tokenizer), torch.arange(40, 120).view(2, 40)
    with torch.no_grad():  # so that every other token ends the answer
        sure.model.lm_head.weight[sure.tokenizer.eos_token_id] = sure.model.lm_head.weight.mean(0) * 50
    rows = generated_sequences(sure.model, tokenizer, 40, 64, passages=passages)
    answers, others = rows[3::4], torch.cat([rows[0::4], rows[1::4], rows[2::4]])
    text = sure.tokenizer.decode(answers[0])
    assert text.startswith("<user>") and "<assistant>" in text
    piece = answers[:, len("<user>") : len("<user>") + 16]
    assert torch.equal(piece[:, 1:] - piece[:, :-1], torch.ones(10, 15, dtype=torch.int64))
    assert (answers == sure.tokenizer.eos_token_id).any() and not (others == sure.tokenizer.eos_token_id).any()


def test_a_row_without_room_for_an_answer_goes_on_behind_a_piece(sure, cache):
    tokenizer, passages = Chatting(sure.tokenizer), torch.arange(40, 120).view(2, 40)
    rows = generated_sequences(sure.model, tokenizer, 8, 20, passages=passages)
    assert torch.equal(rows[3::4, 1:5] - rows[3::4, :4], torch.ones(2, 4, dtype=torch.int64))


def test_instructions_are_no_passages_to_go_on_behind(sure, store, cache, monkeypatch):
    given = []

    def generated(_model, _tokenizer, count, length, *, seed, passages):
        given.append(passages)
        return torch.zeros(count, length, dtype=torch.int64)

    monkeypatch.setattr(generated_text, "generated_sequences", generated)
    with tracking.workflow_run("finetune", {}):
        for text in ("disaster-instructions", "disaster,disaster-instructions:0.2"):
            mix = f"{text},self-generated:0.2"
            for beside in (True, False):
                split_sequences(mix, sure.tokenizer, 256, NOTHING, None, model=sure.model, beside=beside)
    assert given[0] is given[1] is given[3] is None and given[2].min() >= 0


def test_no_more_is_written_than_the_stated_number(sure, cache, monkeypatch):
    monkeypatch.setattr(generated_text, "MAX_SEQUENCES", 5)
    assert written(sure).shape == (5, 24)


def test_generated_text_is_a_logged_input_and_guarded_like_any_other(sure, store, cache, monkeypatch):
    more = {"model": sure.model, "needed": 6}
    with tracking.workflow_run("qat", {}) as run:
        rows = training_sequences("self-generated", sure.tokenizer, 16, NOTHING, None, **more)
    assert rows.shape == (6, 16)
    (given,) = store.get_run(run.id).inputs.dataset_inputs
    assert given.dataset.name == "self-generated" and '"rows": "6"' in given.dataset.source
    document = next(document for document in bundled_documents("test") if document.language == "en")
    remembered = sure.tokenizer(document.text, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(generated_text, "generated_sequences", lambda *_, **__: remembered)
    with pytest.raises(UserError, match="domain/test"):
        training_sequences(
            "self-generated", sure.tokenizer, 16, evaluation_data(("domain_perplexity",), None), None, **more
        )


def test_fine_tuning_refuses_what_the_model_wrote_itself(edgequant):
    check_dataset("self-generated", self_generated=True)
    found = edgequant("finetune", "--model", "tiny", "--dataset", "self-generated")
    assert found.returncode == 2 and "fine-tuning would learn from it what the model knows" in found.stderr
    with pytest.raises(UserError, match=r"name one of disaster, disaster-multilingual, wikitext-2"):
        training_texts("self-generated", None)


@pytest.mark.long
def test_qat_trains_on_as_many_sequences_as_its_steps_draw(store, quick, cache, capsys):
    training = TrainingSettings(
        steps=3, batch_size=2, sequence_length=32, precision="float32", distillation_weight=1.0, teacher_top_k=16
    )
    evaluation = replace(quick, tasks=("domain_perplexity",))
    qat(
        model="tiny",
        dataset="self-generated",
        training=training,
        evaluation=evaluation,
        run=RunSettings(device="cpu"),
        register=False,
    )
    assert len(list((cache / "generated").iterdir())) == 2  # to train and validate on, and the guard
    (kept,) = (cache / "teacher").iterdir()  # the six sequences drawn
    assert kept.stat().st_size < 6 * 32 * (17 * 2 + 16 * 4) + 1000
    assert capsys.readouterr().out.count("teacher: kept its predictions on 6 sequences") == 1
    (run,) = tracking.find_runs(workflow="qat")
    assert run.status == "FINISHED"


def test_of_a_mix_it_is_known_which_rows_the_model_wrote(sure, store, cache, tmp_path):
    (tmp_path / "a.txt").write_text("a" * 3200)
    with tracking.workflow_run("qat", {}):
        text = split_sequences(
            f"{tmp_path}/a.txt:0.25,self-generated", sure.tokenizer, 32, NOTHING, None, model=sure.model
        )
    letters = [set(sure.tokenizer.decode(row)) == {"a"} for row in text.training]
    assert letters == [not generated for generated in text.generated]
    assert sum(letters) == 100 and len(letters) == 400


def test_rows_at_a_time_fill_a_share_of_a_gpu_s_memory(tiny, monkeypatch):
    """Keys and values of every layer, two bytes each."""
    config = tiny.model.config
    head = config.hidden_size // config.num_attention_heads
    kept = config.num_hidden_layers * config.num_key_value_heads * head * 4
    batches = []
    for room in (kept * 512 * 100, kept * 512 * 1e9, 1):
        memory = SimpleNamespace(total_memory=room / generated_text.CACHE_SHARE)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, memory=memory: memory)
        batches.append(generated_text._batch(config, 512, torch.device("cuda")))
    assert batches == [64, generated_text.GPU_BATCH, 1]
