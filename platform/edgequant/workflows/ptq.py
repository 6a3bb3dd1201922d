"""`ptq`: round a model to one or several schemes without training, and measure what that costs.

mlflow run . -e ptq
edgequant ptq --model FOLDER --scheme w4-g64 --method awq+gptq --dataset wikitext-2
"""

from __future__ import annotations

import copy
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.evaluation.evidence_file import Scores
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.export.choice import check_export
from edgequant.folders import CHECKPOINT, FINETUNED, atomic_folder, made_here, share_folder
from edgequant.outputs import Place, check_output, check_own_folder
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq.methods import AUTO, needs_own_text
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.training.settings import UNTRAINED
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.shipping import deploy, plan_timing
from edgequant.workflows.steps.layer_bits import log_layer_bits, resolve_layer_bits
from edgequant.workflows.steps.measure import COMPARISON, headline
from edgequant.workflows.validate import places_read, validate

if TYPE_CHECKING:
    from torch import Tensor

    from edgequant.models.loading import LoadedModel
    from edgequant.models.sources import ModelSource
    from edgequant.quantization.scheme import Scheme

SEVERAL = "ptq"  # kind of the folder that checkpoints of several schemes share
SEQUENCE_LENGTH = 512  # tokens of a calibration sequence


def ptq(
    *,
    model: str = "smollm2-135m",
    scheme: str = "w4a8-g32+emb4,q8_0,bnb-int8,bnb-nf4",
    method: str = "auto",
    size_budget: str | None = None,
    dataset: str = "disaster",
    ptq: PtqSettings = PtqSettings(),
    calibration: CalibrationSettings = CalibrationSettings(),
    evaluation: EvaluationSettings = COMPARISON,
    output: str | None = None,
    export: str | None = None,
    device_profile: str | None = None,
    threads: int | None = None,
    register: bool = False,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Post-training quantisation: the model and each of its schemes side by side, every checkpoint reloaded from disk.

    Args:
        model: short name, hub id, folder, .gguf file or MLflow URI of a floating-point model.
        scheme: one or several, separated by commas, e.g. w4-g32,w8a8-static,bnb-nf4.
        method: how integers are chosen: {ptq_methods}.
        size_budget: mixed precision: choose bits layer by layer so that a checkpoint fits, e.g. bits_per_parameter=4.5
            or megabytes=80; schemes of fixed bits stay as they are.
        dataset: text that is calibrated on: disaster, disaster-multilingual, wikitext-2, a folder or file, or
            self-generated (by the model); not the text that is evaluated on, whose like flatters the result. Schemes
            with static ranges see as much text again that the model writes itself.
        ptq: how methods search.
        calibration: how methods look at activations.
        evaluation: what is measured and how.
        output: folder that the checkpoint becomes, new, empty or of an earlier one; of several schemes, each becomes a
            folder in it (default: outputs/ptq/<run id>).
        export: gguf puts the file that llama.cpp runs, onnx the folder of onnxruntime-genai, gguf,onnx both, with the
            same integers, beside each checkpoint's weights; null: neither.
        device_profile: device that the shipped file is to fit: raspberry-pi-5, phone-4gb, edge-2c-1g or a YAML file
            with threads, memory_gb and disk_gb; null: it is timed without limits.
        threads: CPU threads with which the shipped file is timed; null takes the physical cores, or the profile's.
        register: register each checkpoint as edgequant-<model> in the MLflow registry.
        run: data, device, seed, resuming (behind the decoder blocks that were finished) and experiment.
    """
    config = configuration(locals())
    source, schemes = validate(
        model, dataset, schemes=scheme, size_budget=size_budget, method=None if method == AUTO else method,
        calibration=calibration, evaluation=evaluation, device=run.device,
    )  # fmt: skip
    check_export(export, schemes)
    timing = plan_timing(device_profile, threads, evaluation=evaluation)
    reads = places_read(source, dataset, data_dir=run.data_dir)
    target = check_folders(output, schemes, reads)

    from edgequant import models, tracking
    from edgequant.export.shipped import check_can_ship
    from edgequant.models.manifest import record_baseline
    from edgequant.workflows.adaptation.floating import baseline_of
    from edgequant.workflows.steps.data import check_data, evaluation_data
    from edgequant.workflows.steps.measure import log_layer_errors, measure_items
    from edgequant.workflows.steps.ptq_choice import own_rows
    from edgequant.workflows.steps.register import conditions_of, promote_command, register_version
    from edgequant.workflows.steps.sequences import fitting_length, training_sequences
    from edgequant.workflows.steps.summary import print_summary

    notes = check_data(evaluation.tasks, run.data_dir, dataset=dataset)
    options: dict[str, Any] = {"experiment": run.experiment, "resume": run.resume, "registers": [source.family]}
    with tracking.workflow_run("ptq", config, reads, **options) as tracked:
        loaded = models.load(source, dtype="float32", device=run.device)
        check_can_ship(loaded.model.config, loaded.tokenizer, export)
        name, dtype = loaded.source.family, models.pick_dtype(run.dtype, str(loaded.model.device))
        data = evaluation_data(evaluation.tasks, run.data_dir, dataset)
        wanted, length = calibration.num_calibration_samples, calibration.sequence_length
        if length is None:
            longest = min(SEQUENCE_LENGTH, models.context_length(source) or SEQUENCE_LENGTH)
            length = fitting_length(dataset, loaded.tokenizer, run.data_dir, longest)
            if length < SEQUENCE_LENGTH:
                why = f"all that {dataset} has" if length < longest else f"the context of {name}"
                notes.append(f"calibration sequences are of {length:,} tokens, {why}, instead of {SEQUENCE_LENGTH}")
        sequences = training_sequences(
            dataset, loaded.tokenizer, length, data, run.data_dir, seed=run.seed, model=loaded.model, needed=wanted,
        )[:wanted]  # fmt: skip
        work = tracking.run_folder("ptq", tracked.id)
        own = own_rows(loaded, schemes, method, sequences, dataset, seed=run.seed)
        rounding = Rounding(method, ptq, calibration, sequences, own, work / "finished-blocks")
        mixed = [
            resolve_layer_bits(each, loaded.model, sequences, work, dtype=dtype, resume=tracked.resumed)
            for each in schemes
        ]
        with tracking.variant_run("baseline", model=name, scheme="none", phase="ptq", parameters=UNTRAINED):
            floating = models.cast(copy.deepcopy(loaded.model), dtype)
            baseline = measure_items(floating, loaded.tokenizer, data, evaluation, checkpoint=loaded.stored)
            rows, items = {"none": baseline.metrics}, [baseline.items]
        made_from = baseline_of(loaded.model, source, str(model))
        folders, shipped, versions = {}, {}, []
        for parsed, layer_bits in mixed:
            made = UNTRAINED | {"method": method}
            with tracking.variant_run("ptq", model=name, scheme=parsed.name, phase="ptq", parameters=made):
                folder = folders[parsed.name] = _folder(target, parsed, schemes, work)
                errors, reloaded = write_quantized(loaded, parsed, rounding, folder, dtype=dtype)
                record_baseline(folder, made_from)
                log_layer_errors(errors)
                log_layer_bits(layer_bits)
                found = measure_items(reloaded.model, reloaded.tokenizer, data, evaluation, checkpoint=folder)
                form = shipped[parsed.name] = deploy(reloaded, folder, export, timing)
                tracking.log_metrics(form.metrics)
                tracking.set_tags(form.tags)
                rows[parsed.name] = row = found.metrics | form.metrics
                items.append(found.items)
                if register:
                    version = register_version(
                        folder, model=name, scheme=parsed.name, variant="ptq", tags=form.tags,
                        measured=Scores(row, found.items), baseline=Scores(baseline.metrics, baseline.items),
                        conditions=conditions_of(evaluation, data, run, dataset),
                    )  # fmt: skip
                    versions.append(version)
        shutil.rmtree(rounding.work_folder, ignore_errors=True)
        delivering = mixed[0].scheme
        delivered = delivering.name
        tracking.log_metrics(rows[delivered])
        tracking.set_tags(shipped[delivered].tags)
        table = summary_rows(rows, name, {scheme: form.format for scheme, form in shipped.items()})
        lead = _by_scheme({scheme: form.lead for scheme, form in shipped.items()})
        notes += _by_scheme({scheme: form.notes for scheme, form in shipped.items()})
        following = next_command(str(model), delivering, folders[delivered])
        following = promote_command(versions[0]) if versions else following
        talk = shipped[delivered].talk(folders[delivered])
        print_summary(f"ptq: {name}", table, tracked, following, lead=lead, notes=notes, talk=talk, items=items)
    return WorkflowResult(tracked.id, rows[delivered], str(folders[delivered]), table)


def next_command(model: str, scheme: Scheme, folder: Path) -> str:
    """Adapt the integers of what was fine-tuned; else train with the scheme; or look closer at bitsandbytes' own."""
    if scheme.backend == "edgequant" and was_finetuned(model):
        return f"edgequant finetune --model {shlex.quote(str(folder))} --register true"
    if scheme.backend == "edgequant":
        return f"edgequant qat --model {shlex.quote(model)} --scheme {scheme.name}"
    return f"edgequant evaluate --model {shlex.quote(str(folder))}"


def was_finetuned(model: str) -> bool:
    """Whether a model argument is a folder that `finetune` wrote."""
    found = made_here(Path(model).expanduser().resolve().parent)
    return found is not None and found.kind == FINETUNED


def summary_rows(rows: dict[str, dict[str, float]], model: str, formats: dict[str, str]) -> list[dict[str, Any]]:
    """The summary table: the model as it came, then one row per scheme, with the format in which it ships."""
    variants = {scheme: "baseline" if scheme == "none" else "ptq" for scheme in rows}
    return [
        {"model": model, "variant": variants[scheme], "scheme": scheme, "deploy/format": formats.get(scheme)}
        | headline(row)
        for scheme, row in rows.items()
    ]


def _by_scheme(said: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines with the scheme in front; what is said of several schemes alike stands once."""
    schemes: dict[str, list[str]] = {}
    for scheme, lines in said.items():
        for line in lines:
            schemes.setdefault(line, []).append(scheme)
    return [f"{', '.join(named)}: {line}" for line, named in schemes.items()]


class Rounding(NamedTuple):
    """How weights and ranges are chosen. `sequences` [n, length] are token ids, as are `own` [m, length], which the
    model wrote itself, for methods that need them; finished blocks go to `work_folder`."""

    method: str
    settings: PtqSettings
    calibration: CalibrationSettings
    sequences: Tensor
    own: Tensor
    work_folder: Path

    def rows_for(self, scheme: Scheme) -> Tensor:
        """Token ids [n, length] that a scheme is calibrated on."""
        from edgequant.workflows.steps.sequences import in_turn

        return in_turn(self.sequences, self.own) if needs_own_text(scheme, self.method) else self.sequences


def write_quantized(
    loaded: LoadedModel, scheme: Scheme, rounding: Rounding, folder: Path, *, dtype: str
) -> tuple[list[dict[str, Any]], LoadedModel]:
    """Quantise a copy of a loaded model, write it to `folder`, load it; returns per-layer errors, if any, and that."""
    device = str(loaded.model.device)
    if scheme.backend == "bitsandbytes":
        return [], _write_bitsandbytes(loaded.source, scheme, folder, dtype=dtype, device=device)
    from edgequant import models
    from edgequant.models.same_function.written import load_written
    from edgequant.quantization import checkpoint
    from edgequant.quantization.ptq.quantize import quantize

    model: Any = copy.deepcopy(loaded.model)
    errors = quantize(
        model,
        scheme,
        calibration=[rounding.rows_for(scheme).to(model.device)],
        method=rounding.method,
        settings=rounding.settings,
        calibration_settings=rounding.calibration,
        work_folder=rounding.work_folder,
    )
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    models.cast(model, dtype)
    checkpoint.save(model, loaded.tokenizer, folder, scheme, parameters=parameters, made_from=loaded.source.family)
    rounded = scheme.activation is not None
    return errors, load_written(folder, model, loaded.tokenizer, device=device, rounded_activations=rounded)


def _write_bitsandbytes(source: ModelSource, scheme: Scheme, folder: Path, *, dtype: str, device: str) -> LoadedModel:
    from edgequant import models
    from edgequant.models.adapters.quantized_base import bitsandbytes_config
    from edgequant.models.same_function.written import load_written
    from edgequant.quantization.checkpoint import ensure_manifest

    options = {"quantization_config": bitsandbytes_config(scheme.name, dtype)}
    quantized = models.load(source, dtype=dtype, device=device, load_options=options)
    rounded = scheme.name == "bnb-int8"  # LLM.int8
    with atomic_folder(folder) as temporary:
        quantized.model.save_pretrained(temporary)
        quantized.tokenizer.save_pretrained(temporary)
        ensure_manifest(temporary)
    return load_written(folder, quantized.model, quantized.tokenizer, device=device, rounded_activations=rounded)


def check_folders(output: str | None, schemes: Sequence[Scheme], reads: Sequence[Place]) -> Path | None:
    """Refuse an output that is no place for a checkpoint, or for one of each scheme; returns it, resolved.

    Raises:
        UserError: as `outputs.check_output`.
    """
    if output is None:
        check_own_folder("ptq")
        return None
    if len(schemes) == 1:
        return check_output(output, CHECKPOINT, reads=reads)
    folder = check_output(output, SEVERAL, reads=reads, shared=True)
    for scheme in schemes:
        check_output(Path(output, scheme.name), CHECKPOINT, reads=reads)
    return folder


def _folder(output: Path | None, scheme: Scheme, schemes: Sequence[Scheme], default: Path) -> Path:
    if output is not None and len(schemes) == 1:
        return output
    if output is not None:
        share_folder(output, SEVERAL)
    return (output or default) / scheme.name
