"""`edgequant doctor`: what is installed, which devices, where runs and data are, what is missing and how to get it.

It makes no run, loads no model, and exits with 1 if something is missing without which nothing works.
"""

from __future__ import annotations

from collections.abc import Callable

from edgequant.workflows.checks import installation, machine, reachable
from edgequant.workflows.checks.finding import Finding

MARKS = {"ok": "[green]ok[/green]", "missing": "[bold red]MISSING[/bold red]", "note": "[yellow]note[/yellow]"}


def doctor(*, data_dir: str | None = None, offline: bool = False) -> None:
    """Check the installation and say, for each thing that is missing, how to get it; exits with 1 if it is necessary.

    Args:
        data_dir: folder with WikiText-2, BoolQ and SQuAD in their official formats (default: $EDGEQUANT_DATA).
        offline: do not try to reach the model hub.
    """
    findings = [finding for check in checks(data_dir, offline) for finding in _safely(check)]
    _print(findings)
    if any(finding.state == "missing" for finding in findings):
        raise SystemExit(1)


def checks(data_dir: str | None, offline: bool) -> list[Callable[[], list[Finding]]]:
    """All checks, in the order of the table."""
    return [
        installation.python_version,
        installation.packages,
        machine.devices,
        machine.integer_kernels,
        installation.bitsandbytes,
        reachable.tracking_store,
        lambda: reachable.benchmark_files(data_dir),
        installation.embedded_model,
        lambda: reachable.hub(offline),
        machine.disk_and_memory,
        installation.optional_tools,
    ]


def _safely(check: Callable[[], list[Finding]]) -> list[Finding]:
    """A check that breaks is itself a finding: the rest of the table is still wanted."""
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").replace("_", " ")
        return [Finding(name, "note", f"could not be checked: {type(error).__name__}: {error}")]


def _print(findings: list[Finding]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from edgequant.reporting.console import summary_console

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for finding in findings:
        fix = f"\n[dim]fix: {escape(finding.fix)}[/dim]" if finding.fix and finding.state != "ok" else ""
        table.add_row(MARKS[finding.state], escape(finding.what), escape(finding.found) + fix)
    console = summary_console()
    console.print(table)
    missing = [finding.what for finding in findings if finding.state == "missing"]
    verdict = f"missing, and necessary: {', '.join(missing)}" if missing else "Everything necessary is here."
    console.print(verdict, style="bold red" if missing else "bold green", markup=False)
