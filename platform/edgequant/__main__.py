"""The command line: `edgequant <workflow> --key value`: MLproject's entry points, `chat`, `push`, `sync`, `doctor`."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: a signal is told in one line from here on
    from edgequant.command_line.shell import program

    program()

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from edgequant import commands  # looks at the environment before MLflow changes it
from edgequant.command_line.given import check_given, read_given
from edgequant.command_line.library_errors import told
from edgequant.command_line.messages import one_line, readable
from edgequant.command_line.options import options_of
from edgequant.command_line.renamed_options import refuse_renamed
from edgequant.command_line.shell import run as run  # programs that were installed before ask for it here
from edgequant.disk.faults import fault
from edgequant.errors import UserError
from edgequant.redaction import without_secrets
from edgequant.workflows.settings import RunSettings

# Where each workflow's typed function lives; its signature and docstring are its options and their help.
WORKFLOWS = {
    "corpus": "edgequant.workflows.corpus",
    "baseline": "edgequant.workflows.baseline",
    "ptq": "edgequant.workflows.ptq",
    "qat": "edgequant.workflows.qat",
    "finetune": "edgequant.workflows.finetune",
    "evaluate": "edgequant.workflows.evaluate",
    "export": "edgequant.workflows.export",
    "tune": "edgequant_tune.workflow",
    "promote": "edgequant_registry.workflow",
    "report": "edgequant.workflows.report",
    "pipeline": "edgequant.workflows.pipeline",
    "chat": "edgequant.workflows.chat",
    "push": "edgequant_registry.hub.push",
    "sync": "edgequant.workflows.checks.sync",
    "doctor": "edgequant.workflows.doctor",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one workflow; returns the exit status: 0, 1 where a workflow says no, 2 for bad input, 130 by Ctrl-C.

    `promote` has 3 as well.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name = given[0]
    if name not in WORKFLOWS:
        near = get_close_matches(name, WORKFLOWS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return _refuse(f"workflow {name!r} is unknown.{hint} There are: {', '.join(WORKFLOWS)}")
    quiet_libraries()
    _show_every_character()
    try:
        function = workflow(name)
        returned = function(**parse(name, function, given[1:]))
        return returned if isinstance(returned, int) else 0
    except UserError as error:
        return _refuse(f"{name}: {error}{_way_on(error, name)}", getattr(error, "exit_status", 2))
    except KeyboardInterrupt:
        _refuse(f"{name}: interrupted")
        return 130  # as shells have it: 128 and the number of SIGINT
    except Exception as error:
        if (line := told(error)) is None:
            raise
        return _refuse(f"{name}: {line}{_way_on(error, name)}")


def _way_on(error: Exception, name: str) -> str:
    """After a disk's fault a run goes on from its last checkpoint, where the entry point can."""
    if fault(error) is None or "resume" not in options_of(workflow(name)):
        return ""
    return "; then repeat the command with --resume true, which goes on with the run"


def workflow(name: str) -> Callable[..., Any]:
    """The typed function behind an entry point."""
    return getattr(importlib.import_module(WORKFLOWS[name]), name)  # type: ignore[no-any-return]


def parse(name: str, function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of a workflow from a command line and `--config FILE`.

    Raises:
        UserError: an unknown key, a wrong type or an impossible value; names it and what is known.
    """
    parser, known = make_parser(name, function), options_of(function)
    if not {"-h", "--help"} & {*arguments}:
        given = read_given(arguments, known)
        refuse_renamed(name, given)
        check_given(given, known, _owners)
    try:
        parsed = parser.parse_args(list(arguments))
        values = dict(parser.instantiate_classes(parsed).items())
        values |= {group: RunSettings(**_popped(values, RunSettings)) for group in _flat_groups(function)}
    except UserError:
        raise
    except Exception as error:  # jsonargparse wraps what our own dataclasses raise
        raise UserError(readable(error, given, known)) from error
    values.pop("config", None)
    return values


def _owners(keys: Iterable[str]) -> list[str]:
    """Entry points that have all of these options."""
    return [name for name in WORKFLOWS if {*keys} <= {*options_of(workflow(name))}]


def _flat_groups(function: Callable[..., Any]) -> list[str]:
    """Parameters whose fields are options without a prefix."""
    return [name for name, kind in get_type_hints(function).items() if kind is RunSettings]


def _popped(values: dict[str, Any], settings: type) -> dict[str, Any]:
    return {item.name: values.pop(item.name) for item in fields(settings)}


def make_parser(name: str, function: Callable[..., Any]) -> Any:
    """A jsonargparse parser made of the function's signature and docstring."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        def format_help(self, formatter: Any = None) -> str:
            return super().format_help(formatter) + _epilogue(function)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Types, not their names: for names, jsonargparse runs the module's `if TYPE_CHECKING:` imports, torch and all.
    function.__annotations__ = get_type_hints(function)
    summary = (function.__doc__ or name).split("\n", 1)[0]
    parser = Parser(
        prog=f"edgequant {name}", description=summary, exit_on_error=False, allow_abbrev=False,
        formatter_class=_help_formatter(),
    )  # fmt: skip
    parser.add_argument(
        "--config", action="config", help="a recipe: YAML with the keys below, e.g. experiments/qat.yaml"
    )
    flat = _flat_groups(function)
    parser.add_function_arguments(function, as_group=False, skip={*flat})
    for _ in flat:
        parser.add_class_arguments(RunSettings, as_group=False)
    return parser


def _help_formatter() -> type[Any]:
    from jsonargparse import DefaultHelpFormatter

    from edgequant.workflows.help_texts import filled

    class Filled(DefaultHelpFormatter):
        """Looks up what installed packages add once help is asked for, not at every start."""

        def _get_help_string(self, action: Any) -> str:
            return filled(str(super()._get_help_string(action)))

    return Filled


def _epilogue(function: Callable[..., Any]) -> str:
    """What settings with open lists of values (tasks, which other packages add to) have to say below the options."""
    told = [kind.help_epilogue() for kind in function.__annotations__.values() if hasattr(kind, "help_epilogue")]
    return "".join(f"\n{text}\n" for text in told)


def quiet_libraries() -> None:
    """Keep other libraries' chatter out of the output; what they warn about stays in their logs at level ERROR."""
    import logging
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # they open GenAI's pages; ours do not
    for name in ("alembic", "bitsandbytes", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints each traceback, which we tell
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _show_every_character() -> None:
    """A terminal or pipe of another encoding gets `?` for what it lacks; a finished run does not end over a dash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _refuse(message: str, status: int = 2) -> int:
    print(commands.with_runnable(one_line(without_secrets(f"edgequant {message}"))), file=sys.stderr)
    return status


def _overview() -> str:
    lines = ["usage: edgequant WORKFLOW [--config RECIPE.yaml] [--key value] [--nested.key value]", ""]
    for name in WORKFLOWS:
        lines.append(f"  {name:10} {_summary(name)}")
    return "\n".join([*lines, "", "edgequant WORKFLOW --help lists a workflow's options."])


def _summary(name: str) -> str:
    return (workflow(name).__doc__ or "").split("\n", 1)[0]
