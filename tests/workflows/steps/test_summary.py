"""The summary table: readable without a terminal, honest about missing values, and filed as data."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from edgequant.reporting.console import print_table
from edgequant.workflows.steps.summary import print_summary

BASELINE = {
    "variant": "baseline",
    "model": "smollm2-135m",
    "scheme": "fp16",
    "domain/perplexity": 17.881,
    "size/checkpoint_gb": 0.269,
    "size/reduction_vs_fp16": 0.0,
}
QAT = {
    "variant": "qat",
    "model": "smollm2-135m",
    "scheme": "w4a8-g32+emb4",
    "domain/perplexity": 18.9,
    "size/checkpoint_gb": 0.0781,
    "size/reduction_vs_fp16": 70.97,
    "latency/decode_ms_per_token": 55.7,
}


def printed(title: str, rows: list[dict], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(title, rows, console)
    return console.file.getvalue()


def line_with(text: str, output: str) -> str:
    return next(line for line in output.splitlines() if text in line)


def test_numbers_carry_the_unit_of_their_metric() -> None:
    output = printed("qat", [BASELINE, QAT], width=120)
    assert "perplexity (domain)" in output and "size (MB)" in output and "size reduction vs fp16 (%)" in output
    assert "78.1" in line_with("w4a8-g32+emb4", output) and "71.0" in line_with("w4a8-g32+emb4", output)


def test_the_best_value_is_marked_in_plain_text() -> None:
    output = printed("qat", [BASELINE, QAT])
    assert "17.88 (no interval)" in output and "(no interval)*" not in output  # what shows no difference has no star
    assert "78.1*" in output and "71.0*" in output


def test_what_figures_stand_on_goes_under_their_names_before_a_table_is_cut() -> None:
    wide = {"squad/exact_match": 41.0, "squad/f1": 52.0, "squad/items": 10_570.0, "squad/clusters": 48.0}
    rows = [{**BASELINE, **wide}, {**QAT, **wide}]
    output = printed("qat", rows, width=84)
    assert line_with("SQuAD F1 (%)", output).count("52.0") == 2
    assert output.splitlines().count(line_with("10,570 questions of 48 articles", output)) == 2
    assert "SQuAD F1 (%), 10,570 questions of 48 articles" in printed("qat", rows, width=120)


def test_a_missing_value_is_a_dash_and_never_the_best() -> None:
    assert "–" in line_with("baseline", printed("qat", [BASELINE, QAT], width=120))
    assert "55.7*" not in printed("qat", [BASELINE, QAT])


def test_sizes_stay_in_gigabytes_when_one_is_larger_than_that() -> None:
    output = printed("baseline", [BASELINE, {**QAT, "size/checkpoint_gb": 2.2}])
    assert "size (GB)" in output and "0.269" in output and "2.20" in output


def test_a_confidence_interval_stands_beside_its_statistic() -> None:
    row = {"variant": "a", "boolq/accuracy": 62.1, "boolq/accuracy_ci_low": 59.0, "boolq/accuracy_ci_high": 65.2}
    assert "62.1 (59.0 to 65.2)" in printed("evaluate", [row])


@pytest.mark.parametrize("models", [1, 3, 9])
@pytest.mark.parametrize("metrics", [1, 6, 10])
def test_no_line_is_wider_than_the_console(models: int, metrics: int) -> None:
    names = ["domain/perplexity", "latency/decode_ms_per_token", *(f"group/metric_number_{n}" for n in range(metrics))]
    rows = [{"variant": f"v{m}", "model": f"m{m}", **{n: 12.345 + m for n in names}} for m in range(models)]
    output = printed("many", rows)
    assert max(map(len, output.splitlines())) <= 100
    if models <= 5:
        assert all(f"metric number {n}" in output for n in range(metrics))


def test_names_that_look_like_markup_are_printed_as_they_are() -> None:
    assert "[red]boom[/nothing]" in printed("[b]title[/x]", [{**QAT, "model": "[red]boom[/nothing]"}])


def test_a_name_that_all_rows_share_moves_to_the_title() -> None:
    output = printed("ptq", [BASELINE, QAT])
    assert output.count("smollm2-135m") == 1 and "ptq · smollm2-135m" in output


def test_no_rows_is_said_instead_of_an_empty_table() -> None:
    assert "nothing to show" in printed("report", [])


def test_the_summary_names_the_run_and_the_next_command_and_files_the_rows(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgequant import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.chdir(tmp_path)
    with tracking.workflow_run("demo", {"a": 1}) as run:
        print_summary("demo", [BASELINE, QAT], run, "edgequant promote")
    output = capsys.readouterr().out
    assert run.url in output and "mlflow ui --backend-store-uri" in output and "edgequant promote" in output
    filed = json.loads(tracking.download(f"runs:/{run.id}/summary.json").read_text())
    assert [row.get("domain/perplexity") for row in filed] == [17.881, 18.9]


def test_with_many_metrics_only_those_that_people_compare_are_shown_and_the_rest_is_counted() -> None:
    output = printed("evaluate", [QAT | {f"latency/batch_{n}_ms": 1.0 for n in range(20)}])
    assert "decode ms/token" in output and "batch" not in output and "20 more metrics" in output


def test_a_long_text_stands_below_the_table_with_its_rows_name() -> None:
    warning = "boolq/accuracy fell from 62.100 to 51.000, beyond the reference's interval"
    assert f"qat w4a8-g32+emb4 warning: {warning}" in printed("qat", [BASELINE, QAT | {"warning": warning}])


def test_many_models_that_do_not_fit_are_shown_by_the_metrics_that_decide() -> None:
    rows = [QAT | {"model": f"m{n}", "train/tokens_per_second": 1.0, "parity/max_logit_error": 0.1} for n in range(9)]
    output = printed("report", rows)
    assert "size reduction vs fp16" in output and "training tokens/s" not in output and "2 more metrics" in output


VERDICTS = [
    {"verdict": "FAILED", "gate": "size/reduction_vs_fp16", "why": "50 % is not at least 70 %"},
    {
        "verdict": "passed",
        "gate": "domain/perplexity",
        "why": "1.576 better than the baseline (261.7), " + "long " * 20,
    },
]


def test_a_reason_that_every_row_has_is_wrapped_in_its_last_column_and_said_once() -> None:
    output = printed("promote", VERDICTS)
    assert line_with("FAILED", output).split() == [
        "FAILED",
        *["size/reduction_vs_fp16", "50", "%", "is", "not", "at", "least", "70", "%"],
    ]
    assert max(map(len, output.splitlines())) <= 100 and output.count("50 % is not at least") == 1
    narrow = printed("promote", VERDICTS, width=60)
    assert "why: 50 % is not at least 70 %" in narrow  # below the table, where there is no room in it


def test_what_one_model_alone_has_stands_in_a_table_of_its_own_and_the_title_once() -> None:
    shipped = {"deploy/format": "q4_1", "deploy/size_gb": 0.1, "deploy/reduction_vs_fp16": 70.0, "deploy/load_ms": 12.0}
    bounds = {f"domain/perplexity_ci_{end}": value for end, value in (("low", 17.12), ("high", 19.87))}
    rows = [{**row, **bounds, "verdict": "not harmed", "delivered": "no"} for row in (BASELINE, QAT, QAT)]
    rows[1] |= {"variant": "ptq", **shipped}
    output = printed("qat: smollm2-135m", rows)
    assert output.count("qat: smollm2-135m") == 1
    assert line_with("shipped size (MB)", output).split() == ["shipped", "size", "(MB)", "100"]
    assert output.splitlines()[-1].strip() and not [line for line in output.splitlines() if line.count("–") > 2]
    assert max(map(len, output.splitlines())) <= 100
