"""`evaluate`: measure one model, or score a SQuAD prediction file without any.

mlflow run . -e evaluate
edgequant evaluate --model smollm2-135m --limit 200 --data_dir DATA
edgequant evaluate --model model.gguf --runtime llama.cpp
edgequant evaluate --model ONNX_FOLDER --runtime onnx
edgequant evaluate --squad_predictions predictions.json --data_dir DATA
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.folders import CHECKPOINT, made_here
from edgequant.machine.cores import wait_without_spinning
from edgequant.models.devices import check_device
from edgequant.models.onnx.folder import is_onnx_folder
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.shipping import NOTHING_SHIPS, deploy_source, plan_timing, source_that_ships
from edgequant.workflows.steps.text_mix import check_test_split
from edgequant.workflows.validate import check_threads, check_window, chosen_runtime, onnx_source, places_read
from edgequant.yaml_files import check_regular

if TYPE_CHECKING:
    from edgequant.evaluation.tasks.task import EvaluationData
    from edgequant.models.sources import ModelSource


def evaluate(
    *,
    model: str = "smollm2-135m",
    squad_predictions: str | None = None,
    dataset: str | None = None,
    evaluation: EvaluationSettings = EvaluationSettings(),
    limit: int | None = None,
    runtime: Literal["torch", "llama.cpp", "onnx", "auto"] = "torch",
    threads: int | None = None,
    device_profile: str | None = None,
    cache: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Measure a model: perplexity, BoolQ, SQuAD, domain questions, latency and size, with confidence intervals.

    Args:
        model: short name, hub id, folder (plain model, PEFT adapter, edgequant checkpoint, ONNX folder), .gguf file or
            MLflow URI.
        squad_predictions: official SQuAD prediction file (JSON of id to answer) to score instead of a model.
        dataset: folder of a data set of `edgequant corpus` or Hugging Face whose test split is the domain text; null:
            the bundled documents.
        evaluation: what is measured and how.
        limit: draw this many questions of each set and limit/20 windows; wins over evaluation.limit.
        runtime: torch; llama.cpp or onnx to run a .gguf file or an ONNX folder in its own arithmetic; auto takes what
            the model is for.
        threads: CPU threads of runtimes llama.cpp and onnx; none takes the physical cores. Torch reads OMP_NUM_THREADS.
        device_profile: device that a .gguf file, an ONNX folder, or what ships of a checkpoint, is to fit:
            raspberry-pi-5, phone-4gb, edge-2c-1g or a YAML file with threads, memory_gb and disk_gb; null: a file or
            folder is timed without limits.
        cache: keep every score, so that an interrupted evaluation goes on where it stopped.
        run: data, device, resuming and experiment; a seed other than 0 wins over evaluation.seed.
    """
    config = configuration(locals())
    settings = resolved_settings(evaluation, limit=limit, seed=run.seed, cache=cache)
    check_device(run.device)
    chosen = chosen_runtime(model, runtime)
    check_threads(threads, chosen)
    timing = plan_timing(device_profile, threads, evaluation=settings)
    if chosen == "llama.cpp":
        wait_without_spinning()
    source = check_source(model, chosen, squad_predictions, device_profile)
    if source is not None:
        check_window(source, settings)
        source = source_that_ships(source, device_profile)

    from edgequant import tracking
    from edgequant.workflows.steps.summary import print_summary

    check_test_split(dataset)
    notes = check_evaluated(settings, run, squad_predictions)
    texts = [] if dataset is None else [dataset]
    reads = places_read(source, *texts, data_dir=run.data_dir, predictions=squad_predictions)
    with tracking.workflow_run("evaluate", config, reads, experiment=run.experiment, resume=run.resume) as tracked:
        ships = NOTHING_SHIPS
        if squad_predictions is not None or source is None:
            title, following = f"evaluate: {squad_predictions}", None
            row = score_predictions(str(squad_predictions), settings, run.data_dir)
        else:
            asked = threads if device_profile is None or chosen == "torch" else timing.threads_used
            row = measure_model(source, settings, run, dataset=dataset, runtime=chosen, threads=asked)
            ships = deploy_source(source, row, timing, runtime=chosen)
            row |= ships.cells
            title, following = f"evaluate: {row['model']}", next_command(str(model), row["scheme"])
        tracking.log_metrics(metrics_of(row))
        tracking.set_tags(ships.tags)
        print_summary(title, [row], tracked, following, lead=ships.lead, notes=[*notes, *ships.notes])
    return WorkflowResult(tracked.id, metrics_of(row), None, [row])


def check_evaluated(settings: EvaluationSettings, run: RunSettings, squad_predictions: str | None) -> list[str]:
    """Refuse data, or predictions, that cannot be scored, before a run exists; lines to stand under the table.

    Raises:
        UserError: as `check_data`; predictions that answer none of the questions.
    """
    from edgequant.corpora.benchmarks import data_folder, load_squad
    from edgequant.workflows.steps.data import check_data, evaluation_data

    if squad_predictions is None:
        return check_data(settings.tasks, run.data_dir)

    from edgequant.evaluation.tasks.squad import SQUAD, check_predictions

    if data_folder(run.data_dir) is None:
        return check_predictions(squad_predictions, load_squad(SQUAD.data[0].report))
    notes = check_predictions(squad_predictions, evaluation_data(("squad",), run.data_dir)["squad"] or ())
    return [*check_data(("squad",), run.data_dir), *notes]


def resolved_settings(
    evaluation: EvaluationSettings, *, limit: int | None, seed: int = 0, cache: bool
) -> EvaluationSettings:
    """The settings with the command line's own limit, seed (unless it is 0) and cache folder put in."""
    from edgequant.files import cache_dir

    changes: dict[str, Any] = {} if limit is None else {"limit": limit}
    changes |= {"seed": seed} if seed else {}
    if not cache:
        changes["cache_dir"] = None
    elif evaluation.cache_dir is None:
        changes["cache_dir"] = str(cache_dir() / "scores")
    return replace(evaluation, **changes)


def check_source(
    model: str, runtime: str, squad_predictions: str | None = None, device_profile: str | None = None
) -> ModelSource | None:
    """Refuse a model or file that is not there, before anything heavy is imported.

    Returns:
        Where the model comes from; None where a prediction file is scored instead.

    Raises:
        UserError: names the value and what was expected.
    """
    from edgequant import models

    if squad_predictions is not None:
        if device_profile is not None:
            raise UserError(f"device_profile must be left out with squad_predictions, got {device_profile!r}")
        named = f"squad_predictions must be a JSON file of question id to answer; {squad_predictions!r}"
        check_regular(Path(squad_predictions).expanduser(), named)
        return None
    if runtime == "onnx":
        return onnx_source(models.resolve(model), model)
    # what transformers cannot hold may run in llama.cpp, which says itself what it cannot read
    source = models.resolve(model) if runtime == "llama.cpp" else models.check_available(model)
    if runtime == "llama.cpp" and source.kind != "gguf":
        raise UserError(
            f"model for runtime llama.cpp must be a .gguf file, got {model!r}; export it first or use runtime torch"
        )
    return source


class Target(NamedTuple):
    """A model ready to be measured, what it is called, and the file or folder whose bytes are its size on disk."""

    model: Any
    tokenizer: Any
    name: str
    scheme: str
    checkpoint: Path | None


def next_command(model: str, scheme: str) -> str | None:
    """Quantise what is not; an edgequant checkpoint goes on to llama.cpp or vLLM."""
    from edgequant.workflows.steps.summary import quantize_next

    if scheme == "none":
        return quantize_next("ptq", model)
    folder = Path(model).expanduser()
    made = made_here(folder)
    is_export = is_onnx_folder(folder) or (made is not None and made.kind != CHECKPOINT)
    is_ours = not scheme.startswith("bnb") and folder.is_dir() and not is_export
    return f"edgequant export --model {shlex.quote(model)}" if is_ours else None


def measure_model(
    model: str | ModelSource,
    settings: EvaluationSettings,
    run: RunSettings,
    *,
    runtime: str = "torch",
    threads: int | None = None,
    phase: str = "evaluate",
    dataset: str | None = None,
) -> dict[str, Any]:
    """Load and measure one model in a nested run; its row for a table: names and every metric."""
    from edgequant import tracking
    from edgequant.workflows.steps.data import evaluation_data
    from edgequant.workflows.steps.measure import measure

    target = load_target(model, runtime=runtime, device=run.device, dtype=run.dtype, threads=threads)
    variant = "baseline" if target.scheme == "none" else "quantized"
    names: dict[str, Any] = {"model": target.name, "scheme": target.scheme, "phase": phase}
    with tracking.variant_run(variant, **names, parameters={"runtime": runtime}):
        data = evaluation_data(settings.tasks, run.data_dir, dataset)
        log_draws(data, settings)
        metrics = measure(target.model, target.tokenizer, data, settings, checkpoint=target.checkpoint)
    return {"model": target.name, "variant": variant, "scheme": target.scheme, **metrics}


def load_target(
    model: str | ModelSource, *, runtime: str, device: str, dtype: str, threads: int | None = None
) -> Target:
    """Load a model of any source for measuring; a .gguf file either de-quantised in torch or as it is in llama.cpp.

    Raises:
        UserError: the source cannot be loaded, or the runtime's package is absent.
    """
    from edgequant import models

    source = models.resolve(model)
    if runtime == "llama.cpp":
        from edgequant.evaluation.backends.llama_cpp_model import LlamaCppModel

        layers = -1 if models.pick_device(device).startswith("cuda") else 0
        gguf = LlamaCppModel(source.location, gpu_layers=layers, threads=threads)
        return Target(gguf, None, source.name, gguf.file_type, Path(source.location))
    if runtime == "onnx":
        from edgequant.evaluation.backends.onnx_model import OnnxModel

        folder = OnnxModel(source.location, threads=threads)
        return Target(folder, None, source.name, folder.scheme, Path(source.location))
    loaded = models.load(source, dtype=dtype, device=device)
    return Target(loaded.model, loaded.tokenizer, loaded.source.name, _scheme_of(loaded.model), loaded.stored)


def _scheme_of(model: Any) -> str:
    """The quantisation scheme's name as its config tells it, or none."""
    if exported := getattr(model.config, "edgequant_scheme", None):
        return str(exported)
    stated = getattr(model.config, "quantization_config", None)
    stated = stated if isinstance(stated, dict) or stated is None else stated.to_dict()
    if not stated:
        return "none"
    scheme = stated.get("scheme")
    name = scheme.get("name") if isinstance(scheme, dict) else scheme
    return str(name or stated.get("quant_method") or "quantized")


def log_draws(data: EvaluationData, settings: EvaluationSettings) -> None:
    """File the questions that a limit leaves as data sets of their own, which is what the run's figures stand on."""
    from edgequant import tracking
    from edgequant.evaluation.evidence_file import rows_digest
    from edgequant.evaluation.statistics.sampling import draw
    from edgequant.evaluation.tasks.registry import find_data_set

    for name, rows in data.items():
        if rows is None or not find_data_set(name).drawn:
            continue
        if settings.limit is not None and settings.limit < len(rows):
            chosen = draw(len(rows), settings.limit, settings.seed)
            digest = rows_digest([rows[index] for index in chosen])
            drawn = f"{name}: {len(chosen)} of {len(rows)}, seed {settings.seed}"
            tracking.log_dataset(drawn, digest, name, rows=len(chosen), context="drawn")


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """A row's numbers without its names."""
    return {key: value for key, value in row.items() if "/" in key and not isinstance(value, str)}


def score_predictions(path: str, settings: EvaluationSettings, data_dir: str | None) -> dict[str, Any]:
    """Score a prediction file over the whole development set, as the official script does."""
    from edgequant import tracking
    from edgequant.corpora.benchmarks import load_squad
    from edgequant.evaluation.tasks.squad import SQUAD, score_prediction_file

    scored = score_prediction_file(path, load_squad(SQUAD.data[0].report, data_dir), settings)
    for name, items in scored.items.items():
        tracking.log_table(items, f"items/{name}.json")
    for name in SQUAD.display:
        print(f"{name} {scored.metrics[name]:.3f}")
    return {"model": Path(path).stem, "variant": "predictions", "scheme": "none", **scored.metrics}
