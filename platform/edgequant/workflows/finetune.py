"""`finetune`: adapt a model to the domain: LoRA, QLoRA over bitsandbytes weights, or within a checkpoint's integers.

mlflow run . -e finetune
edgequant finetune --model FOLDER --base bnb-nf4 --dataset FOLDER_OF_DOCUMENTS
edgequant finetune --model CHECKPOINT                    # of ptq or qat: ends in the same scheme and size
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.evaluation.evidence_file import Scores
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.folders import CHECKPOINT, FINETUNED, refusal
from edgequant.outputs import Place, check_output, check_own_folder, places
from edgequant.training.settings import UNTRAINED, LoraSettings, TrainingSettings
from edgequant.workflows.adaptation.bases import Base, check_base
from edgequant.workflows.adaptation.floating import Original, Reference, find_floating, load_floating, measure_floating
from edgequant.workflows.adaptation.ways import ADAPTER, MERGED, Way, Written, way_of
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.shipping import NOTHING_SHIPS, deploy_folder, plan_timing
from edgequant.workflows.steps.measure import COMPARISON, headline
from edgequant.workflows.steps.text_mix import with_replay
from edgequant.workflows.validate import places_read, validate

if TYPE_CHECKING:
    from edgequant.training.trainer import Anchor
    from edgequant.workflows.steps.sequences import Split


def finetune(
    *,
    model: str = "smollm2-135m",
    dataset: str = "disaster",
    replay: str | None = "self-generated:0.5",
    base: Base = "auto",
    apart: bool = False,
    baseline: str | None = None,
    training: TrainingSettings = TrainingSettings(learning_rate=5e-4),
    lora: LoraSettings = LoraSettings(),
    evaluation: EvaluationSettings = COMPARISON,
    output: str | None = None,
    register: bool = False,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Domain adaptation: LoRA on the text, the model before and after side by side.

    Over a floating-point model it writes the adapter and the merged model, which `ptq` and `qat` take as --model. Over
    a quantised checkpoint the updates end in its integers, and the checkpoint in its scheme and size.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model, or a checkpoint of `ptq`,
            `qat` or `finetune`.
        dataset: text to train on: disaster, disaster-multilingual, wikitext-2, or a folder or file, of a data set with
            splits the train split: its validation split then chooses the best state, and its test split is what domain
            perplexity is measured on; or a mix with shares of the tokens, such as disaster:0.8,wikitext-2:0.2.
            Instructions, disaster-instructions or a .jsonl file with instruction and answer on each line, are rendered
            by the chat template and learnt by their answers alone.
        replay: general text and its share of the tokens, mixed in so that less is forgotten: self-generated, which the
            model as it came writes, and where it is held to its own predictions, or a text whose words are learnt;
            null: none. A dataset that holds it already is taken as it is.
        base: weights under the adapters: auto, the model's own; float; or bitsandbytes' bnb-int8, bnb-nf4, bnb-fp4
            (QLoRA), over which the adapter stays apart and is measured.
        apart: over a checkpoint's integers, keep LoRA apart from them, to be served with them and exported as a LoRA
            file for llama.cpp, instead of training integers and scales.
        baseline: floating-point model of a quantised checkpoint, which the result is judged against; null: the one that
            the checkpoint says it was made from.
        training: length, batch, learning rate.
        lora: rank, scale, dropout and targets of the adapters.
        evaluation: what is measured and how.
        output: folder that receives adapter/ and merged/, new, empty or of an earlier fine-tuning (default:
            outputs/finetune/<run id>).
        register: register the merged model as edgequant-<model> in the MLflow registry.
        run: data, device, seed, resuming and experiment.
    """
    config = configuration(locals())
    training.known_rate  # noqa: B018 - refuses `auto`
    dataset = with_replay(dataset, replay)
    source = validate(
        model, dataset, training=training, evaluation=evaluation, self_generated=False, replayed=True,
        instructions=True, device=run.device, integers=True,
    ).source  # fmt: skip
    under = check_base(source, base, lora, apart=apart, register=register, baseline=baseline)
    way = way_of(source, model, under, lora, apart=apart, dtype=run.dtype, device=run.device)
    timing = plan_timing(None, evaluation=evaluation)
    floating = find_floating(way, baseline)
    reads = places_read(source, dataset, data_dir=run.data_dir)
    reads += places({"baseline": floating.model if floating else None})
    target = check_folders(output, way.parts, reads)

    from edgequant import tracking
    from edgequant.training.teacher_cache import check_top_k
    from edgequant.workflows.adaptation.selection import anchor_of, text_of
    from edgequant.workflows.steps.data import check_data, evaluation_data
    from edgequant.workflows.steps.measure import measure_items
    from edgequant.workflows.steps.register import conditions_of, register_version
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir, dataset=dataset)
    options: dict[str, Any] = {"experiment": run.experiment, "resume": run.resume, "registers": [source.family]}
    with tracking.workflow_run("finetune", config, reads, **options) as tracked:
        work = tracking.run_folder("finetune", tracked.id) / "training"
        folder = target or work.parent
        data = evaluation_data(evaluation.tasks, run.data_dir, dataset)
        original = load_floating(floating, way) if floating else Original()
        loaded = way.load()
        name, tokenizer = loaded.source.family, loaded.tokenizer
        kind = str(loaded.model.device).partition(":")[0]
        text = text_of(dataset, original.loaded or loaded, training, data, run)
        reference = measure_floating(original, way, data, evaluation)
        training = way.fitting(training.for_text(len(text.training), kind))
        if bool(text.generated.any()):
            check_top_k(loaded.model, training.teacher_top_k)
        names: dict[str, Any] = {"model": name, "scheme": way.scheme}
        found = {"baseline": reference.measured} if reference.measured else {}
        began = "quantized" if floating else "baseline"
        with tracking.variant_run(began, **names, phase="finetune", parameters=UNTRAINED):
            before = way.before(loaded)
            found[began] = measure_items(before.model, tokenizer, data, evaluation, checkpoint=before.stored)
            judged = {began: reference.judge(found[began].items)}  # of other items, it is refused before training
        compared = reference if floating else Reference(found[began])  # else with what the model was before
        made = training.parameters | {"lora_rank": lora.rank}
        with tracking.variant_run("finetuned", **names, phase="finetune", parameters=made):
            anchor, ends = anchor_of(text, original.loaded or before, loaded), tokenizer.eos_token_id
            original = Original()  # nobody but the anchor needs it now
            adapted = way.prepare(loaded, run.seed)
            how: dict[str, Any] = {"seed": run.seed, "resume": tracked.resumed, "document_end": ends}
            adapt(adapted, model, text, training, work, anchor=anchor, **how)
            written = way.write(adapted, tokenizer, folder)
            reference.record(written.delivered)
            tracking.log_metrics(written.metrics)
            measured_folder = written.delivered if written.whole else None
            after = measure_items(written.loaded, tokenizer, data, evaluation, checkpoint=measured_folder)
            found["finetuned"], judged["finetuned"] = after, compared.judge(after.items)
            ships = deploy_folder(written.delivered, None, timing) if way.ships else NOTHING_SHIPS
            tracking.log_metrics(ships.metrics)
            tracking.set_tags(ships.tags)
        shutil.rmtree(work, ignore_errors=True)  # not before: a run that is resumed here has nothing to train
        rows = {variant: each.metrics for variant, each in found.items()}
        verdict = judged["finetuned"]
        rows["finetuned"] = rows["finetuned"] | written.metrics | ships.metrics | verdict.metrics
        tracking.set_tags(ships.tags | verdict.tags)
        tracking.log_metrics(rows["finetuned"])
        if (folder / ADAPTER).is_dir() and ADAPTER in way.parts:
            tracking.log_folder(folder / ADAPTER, ADAPTER)
        version = None
        if register:
            scores = {variant: Scores(row, found[variant].items) for variant, row in rows.items()}
            version = register_version(
                written.delivered, **names, variant="finetuned", measured=scores["finetuned"],
                baseline=scores.get("baseline"), began=scores.get("quantized"), uncompared=reference.uncompared,
                conditions=conditions_of(evaluation, data, run, dataset), tags=ships.tags | verdict.tags,
            )  # fmt: skip
        table = [{**names, "variant": v, **headline(row), **judged[v].cells} for v, row in rows.items() if v in judged]
        if reference.measured:
            table.insert(0, {**names, "variant": "baseline", "scheme": "none", **headline(rows["baseline"])})
        title = f"finetune: {name}, LoRA rank {lora.rank}"
        following, talk = next_command(written, way, version), ships.talk(written.delivered)
        following = "edgequant report" if version and verdict.harmed else following
        lead, notes = [*verdict.lines, *ships.lead], [*notes, *ships.notes]
        items = [each.items for each in found.values()]
        print_summary(title, table, tracked, following, lead=lead, notes=notes, talk=talk, items=items)
    return WorkflowResult(tracked.id, rows["finetuned"], str(written.delivered), table)


def check_folders(output: str | None, parts: Sequence[str], reads: Sequence[Place]) -> Path | None:
    """Refuse an output that is no place for the folders that will be written; returns it, resolved.

    Args:
        parts: which of adapter/ and merged/ will be.

    Raises:
        UserError: as `outputs.check_output`; or there is one of the two and it will not be written.
    """
    check_own_folder("finetune")
    if output is None:
        return None
    folder = check_output(output, FINETUNED, reads=reads, shared=True)
    for name in (ADAPTER, MERGED):
        check_output(Path(output, name), CHECKPOINT, reads=reads)
        if name not in parts and (folder / name).exists():
            raise refusal(output, FINETUNED, f"holds {name!r}, of which these settings write none")
    return folder


def adapt(
    adapted: Any, made_from: str, text: Split, training: TrainingSettings, work: Path, *, seed: int, resume: bool,
    document_end: int | None = None, anchor: Anchor | None = None,
) -> None:  # fmt: skip
    """Train a prepared model in place, with `work` for training's checkpoints; leaves it in evaluation mode.

    It ends as it was when the validation text was predicted best, at its start if training made that worse.
    """
    from edgequant import tracking
    from edgequant.training.loop import train
    from edgequant.workflows.adaptation.selection import watch_of

    result = train(
        adapted, text.training, training, work, watch=watch_of(text, training), seed=seed, resume=resume,
        title=f"finetune {made_from}", document_end=document_end, anchor=anchor,
        on_log=lambda step, metrics: tracking.log_metrics(metrics, step=step),
        on_look=lambda step, losses: tracking.log_metrics(losses, step=step),
    )  # fmt: skip
    tracking.log_metrics(result.metrics)
    adapted.eval()


def next_command(written: Written, way: Way, version: str | None) -> str:
    """Quantise what was adapted in floating point, ship what is integers, look at what stays apart."""
    from edgequant.workflows.steps.summary import fitting_scheme

    place = shlex.quote(str(written.delivered))
    if not written.whole:
        return f"edgequant evaluate --model {place}"
    if way.scheme == "none":
        return f"edgequant ptq --model {place} --scheme {fitting_scheme(str(written.delivered))}"
    return f"edgequant export --model {version or place}"
