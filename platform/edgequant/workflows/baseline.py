"""`baseline`: several models under identical settings, one table, one nested run each.

mlflow run . -e baseline
edgequant baseline --model smollm2-135m,qwen2.5-0.5b --limit 500 --data_dir DATA
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgequant.errors import UserError
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.squad import SQUAD
from edgequant.models.devices import check_device
from edgequant.workflows.evaluate import measure_model, resolved_settings
from edgequant.workflows.settings import RunSettings, WorkflowResult, configuration
from edgequant.workflows.steps.text_mix import check_test_split
from edgequant.workflows.validate import check_window, places_read

if TYPE_CHECKING:
    from edgequant.models.sources import ModelSource

SCATTERS = (
    ("size/checkpoint_gb", "latency/decode_ms_per_token"),
    ("size/checkpoint_gb", "squad/f1"),
    ("wikitext2/perplexity", "squad/f1"),
)


def baseline(
    *,
    model: str = "smollm2-135m,qwen2.5-0.5b,tinyllama-1.1b,phi-1.5,gemma-3-1b-it",
    dataset: str | None = None,
    evaluation: EvaluationSettings = EvaluationSettings(),
    limit: int | None = 200,
    cache: bool = True,
    run: RunSettings = RunSettings(),
) -> WorkflowResult:
    """Benchmark several models under identical settings: quality, latency and size side by side.

    Args:
        model: model sources, separated by commas; one that fails is noted and does not stop the others.
        dataset: folder of a data set of `edgequant corpus` or Hugging Face whose test split is the domain text; null:
            the bundled documents.
        evaluation: what is measured and how, the same for all.
        limit: draw this many questions of each set and limit/20 windows; null for everything; wins over
            evaluation.limit.
        cache: keep every score, so that an interrupted benchmark goes on where it stopped.
        run: data, device, resuming and experiment; a seed other than 0 wins over evaluation.seed.
    """
    config = configuration(locals())
    check_device(run.device)
    sources = model_sources(model)
    check_test_split(dataset)
    settings = resolved_settings(evaluation, limit=limit, seed=run.seed, cache=cache)

    from edgequant import tracking
    from edgequant.workflows.steps.data import check_data
    from edgequant.workflows.steps.summary import print_summary, quantize_next

    notes = check_data(settings.tasks, run.data_dir)
    texts = [] if dataset is None else [dataset]
    reads = [place for source in sources.values() for place in places_read(source, *texts, data_dir=run.data_dir)]
    with tracking.workflow_run("baseline", config, reads, experiment=run.experiment, resume=run.resume) as tracked:
        rows, measured, failures = [], [], {}
        for name, source in sources.items():
            try:
                check_window(source, settings)
                rows.append(measure_model(source, settings, run, dataset=dataset, phase="baseline"))
                measured.append(name)
            except Exception as error:  # one model's trouble, whatever it is, must not cost the others their results
                failures[name] = f"{type(error).__name__}: {error}"
                print(f"{name} failed: {failures[name]}")
            _free_memory()
        _conclude(rows, failures)
        table = rows + _failed_rows(failures)
        print_summary("baseline", table, tracked, quantize_next("qat", measured[0]), notes=notes)
    return WorkflowResult(tracked.id, {}, None, table)


def model_sources(models: str) -> dict[str, ModelSource]:
    """The model sources of a comma-separated list, each once, checked before anything heavy is imported.

    Raises:
        UserError: the list is empty, or a source is neither a known name nor there.
    """
    from edgequant.models.sources import resolve

    names = list(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
    if not names:
        raise UserError("model must be sources separated by commas, such as smollm2-135m,qwen2.5-0.5b, got nothing")
    return {name: resolve(name) for name in names}


def log_plots(rows: list[dict[str, Any]]) -> None:
    """Bars per metric and one metric against another, with the intervals as error bars; of what was measured."""
    from edgequant.reporting import plots
    from edgequant.reporting.columns import figure_metrics
    from edgequant.reporting.figure_files import log_figure

    for metric in dict.fromkeys([*figure_metrics(), *SQUAD.display]):
        if any(metric in row for row in rows):
            log_figure(plots.bars(rows, metric), f"plots/{_file(metric)}.html")
    for x, y in SCATTERS:
        if any(x in row and y in row for row in rows):
            log_figure(plots.scatter(rows, x, y), f"plots/{_file(y)}_against_{_file(x)}.html")


def _conclude(rows: list[dict[str, Any]], failures: dict[str, str]) -> None:
    """Failures and plots on the parent run; no model at all is the whole run's failure."""
    from edgequant import tracking

    if failures:
        tracking.log_text("".join(f"{name}\n{reason}\n\n" for name, reason in failures.items()), "failures.txt")
        tracking.set_tags({"edgequant.failed_models": ",".join(failures)})
    if not rows:
        raise UserError("no model could be measured: " + "; ".join(f"{name}: {why}" for name, why in failures.items()))
    log_plots(rows)


def _failed_rows(failures: dict[str, str]) -> list[dict[str, Any]]:
    return [{"model": name, "variant": "failed", "scheme": "none"} for name in failures]


def _file(metric: str) -> str:
    return metric.replace("/", "_")


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
