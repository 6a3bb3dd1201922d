"""What ships, in the runtime that will run it: its size; times and memory in fresh processes; whether it fits a device.

The one place where workflows ask for it: `plan_timing` before the work, `deploy` or `deploy_file` behind it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError, first_line
from edgequant.evaluation.backends.llama_cpp.library import INSTALL, version
from edgequant.evaluation.backends.memory_limit import memory_limit
from edgequant.evaluation.devices.fit import EMULATES_NEITHER, fit
from edgequant.evaluation.devices.profile import MOST_THREADS, DeviceProfile, read_profile
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.evaluation.tasks.latency import LATENCY
from edgequant.export.formats import FORMATS
from edgequant.machine.cores import physical_cores
from edgequant.models.onnx.library import PACKAGES
from edgequant.workflows.validate import stated_scheme

if TYPE_CHECKING:
    from edgequant.export.shipped import Shipped
    from edgequant.models.loading import LoadedModel
    from edgequant.models.sources import ModelSource

RUN_AS_THEY_ARE = ("gguf", "onnx")  # kinds of a model source that a runtime of devices takes
TIMES = ("load_ms", "time_to_first_token_ms", "prefill_ms_per_token", "decode_ms_per_token")
PROMPT, NEW_TOKENS = 128, 32  # tokens, where the settings leave them open
_ABSENT = f"xllamacpp is not installed ({INSTALL})"


@dataclass(frozen=True, kw_only=True)
class TimingPlan:
    """How a shipped file is timed.

    Attributes:
        profile: the device that it is to fit; None: none was named.
        threads: asked for; None: the profile's, else the physical cores.
        prompt_length, new_tokens: in tokens.
        left_out: why it is not timed; empty where it is.
    """

    profile: DeviceProfile | None = None
    threads: int | None = None
    prompt_length: int = PROMPT
    new_tokens: int = NEW_TOKENS
    repetitions: int = 5
    left_out: str = ""

    @property
    def threads_used(self) -> int:
        """More threads than cores would tell of their quarrel over them."""
        return self.threads or min(physical_cores(), self.profile.threads if self.profile else MOST_THREADS)

    def of(self, format: str, *, runs: bool) -> TimingPlan:
        """The plan for a form that ships; `runs`: whether a runtime here can run it."""
        return self if runs or self.left_out else replace(self, left_out=f"no runtime here runs {format}")


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What ships and what it takes; to be logged, tagged and printed.

    Attributes:
        format: of the exported form, or `none`; empty of what is no form at all.
        metrics: `deploy/...`.
        tags: for the run and the registered version; none is empty.
        lead: lines above the table: whether it fits.
        notes: lines below it.
    """

    format: str
    metrics: dict[str, float]
    tags: dict[str, str] = field(default_factory=dict)
    lead: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def talk(self, checkpoint: Path) -> str | None:
        """The command that talks with a checkpoint in llama.cpp; None where that does not run what ships."""
        return f"edgequant chat --model {shlex.quote(str(checkpoint))}" if self.format in FORMATS else None

    @property
    def cells(self) -> dict[str, Any]:
        """For a row of the closing table."""
        return {"deploy/format": self.format, **self.metrics} if self.format else {}


NOTHING_SHIPS = Deployed(format="", metrics={})


def plan_timing(
    device_profile: str | None,
    threads: int | None = None,
    *,
    evaluation: EvaluationSettings | None = None,
    wanted: bool = True,
) -> TimingPlan:
    """Read a profile and decide whether a shipped file will be timed, before any work.

    Args:
        device_profile: name or YAML file; asks for times whatever `evaluation` leaves out.
        threads: None takes the profile's, else the physical cores.
        evaluation: its task `latency` asks for times, its latency_* say of what; None: as by default.
        wanted: whether times are asked for without a profile.

    Raises:
        UserError: a profile that is none, a number of threads that is none or beside a profile's, or no runtime where a
            profile asks for one.
    """
    profile = None if device_profile is None else read_profile(device_profile)
    _check_threads(threads, profile)
    runtime = version() is not None
    if profile is not None and not runtime:
        raise UserError(f"device_profile {device_profile!r} needs llama.cpp to be tried; {_ABSENT}")
    if not runtime:
        left_out = _ABSENT
    elif evaluation is not None and LATENCY.name not in evaluation.tasks and profile is None:
        left_out = f"{LATENCY.name} is not among evaluation.tasks"
    else:
        left_out = "" if wanted or profile is not None else "check is false"
    plan = TimingPlan(profile=profile, threads=threads, left_out=left_out)
    if evaluation is None:
        return plan
    lengths = evaluation.latency_prompt_lengths
    return replace(
        plan,
        prompt_length=lengths[0] if lengths else PROMPT,
        new_tokens=evaluation.latency_new_tokens or NEW_TOKENS,
        repetitions=evaluation.latency_repetitions,
    )


def _check_threads(threads: int | None, profile: DeviceProfile | None) -> None:
    if threads is None:
        return
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads must be from 1 to {MOST_THREADS}, got {threads}; leave it out for the physical cores")
    if profile is not None:
        raise UserError(
            f"threads must be left out with device_profile, got {threads}; {profile.name} has {profile.threads}: "
            "change them in a profile of your own"
        )


def deploy(loaded: LoadedModel, checkpoint: Path, export: str | None, plan: TimingPlan) -> Deployed:
    """What ships of a checkpoint: its size, with `export` gguf the file, and how it runs.

    Args:
        loaded: the checkpoint as it was loaded.
        checkpoint: its folder.
        export: as `ship`; without it the file is written for the measurement alone.

    Raises:
        UserError: as `ship`.
    """
    from edgequant.export.shipped import place_beside

    with Scratch(place_beside(checkpoint), ".shipped.") as folder:
        shipped = _shipped(loaded, checkpoint, export, None if plan.left_out else Path(folder))
        tags = {name: value for name, value in shipped.tags.items() if value}
        timing = plan.of(shipped.format, runs=shipped.path is not None)
        taken = deploy_file(shipped.path, shipped.format, shipped.metrics, timing)
    return replace(taken, tags=tags | taken.tags, notes=(*shipped.notes, *taken.notes))


def deploy_folder(checkpoint: Path, export: str | None, plan: TimingPlan) -> Deployed:
    """`deploy` of a checkpoint that is not loaded."""
    from edgequant import models

    return deploy(models.load(str(checkpoint), dtype="auto", device="cpu"), checkpoint, export, plan)


def deploy_source(source: ModelSource, measured: Mapping[str, Any], plan: TimingPlan, *, runtime: str) -> Deployed:
    """What ships of an evaluated model: a .gguf file or an ONNX folder as it is; of a checkpoint with a profile.

    Args:
        measured: of the model; its `size/...` are a file's or a folder's own.
        runtime: that it was measured in. Where that is the one of devices, and no profile limits it, its times are
            those of fresh processes already and are taken over.

    Returns:
        NOTHING_SHIPS of floating-point models, and of checkpoints without a profile.
    """
    if source.kind in RUN_AS_THEY_ARE:
        names = {"size/checkpoint_gb": "deploy/size_gb", "size/reduction_vs_fp16": "deploy/reduction_vs_fp16"}
        sizes = {name: measured[key] for key, name in names.items() if key in measured}
        if runtime != "torch" and plan.profile is None and not plan.left_out:
            return _measured_already(source, measured, sizes, plan)
        return deploy_file(Path(source.location), source.kind, sizes, plan)
    return NOTHING_SHIPS if plan.profile is None else deploy_folder(Path(source.location), None, plan)


def _measured_already(
    source: ModelSource, measured: Mapping[str, Any], sizes: Mapping[str, float], plan: TimingPlan
) -> Deployed:
    own = [f"latency/{name}" for name in TIMES]
    times = {
        name.replace("latency/", "deploy/"): value
        for name, value in measured.items()
        if any(name == each or name.startswith((f"{each}_ci_", f"{each}_p90")) for each in own)
    }
    metrics = times | {"deploy/peak_rss_gb": measured["size/peak_rss_gb"], "deploy/threads": float(plan.threads_used)}
    how = {"edgequant.deploy_runtime": _runtime_of(Path(source.location))}
    return Deployed(format=source.kind, metrics=metrics | dict(sizes), tags=how)


def _shipped(loaded: LoadedModel, checkpoint: Path, export: str | None, scratch: Path | None) -> Shipped:
    """A file that cannot be written for the measurement alone costs the measurement, not a finished training."""
    from edgequant.export.shipped import ship

    try:
        return ship(loaded, checkpoint, export, scratch=scratch)
    except (UserError, OSError) as refusal:
        if export is not None or scratch is None:
            raise
        shipped = ship(loaded, checkpoint)
        return replace(shipped, notes=(*shipped.notes, f"the shipped file was not written: {first_line(refusal)}"))


def deploy_file(file: Path | None, format: str, sizes: Mapping[str, float], plan: TimingPlan) -> Deployed:
    """What a shipped file takes in its runtime, and whether it fits the profile's device.

    Args:
        file: a GGUF file or an ONNX folder; None: there is none that a runtime here could run, and the plan leaves
            the times out.
        sizes: its `deploy/size_gb` and `deploy/reduction_vs_fp16`.
    """
    if plan.left_out:
        notes = () if format == "none" else (f"deploy/decode_ms_per_token and its like were left out: {plan.left_out}",)
        return _judged(Deployed(format=format, metrics=dict(sizes), notes=notes), plan)
    assert file is not None
    with nullcontext() if plan.profile is None else memory_limit(plan.profile.memory_gb) as memory:
        from edgequant.evaluation.efficiency.shipped import fitting_shipped, shipped_metrics

        how = {"edgequant.deploy_runtime": _runtime_of(file)}
        how |= {} if memory is None else {"edgequant.memory_limit": memory.how}
        try:
            (prompt, *_), new = fitting_shipped(file, plan.prompt_length, plan.new_tokens)
            metrics = shipped_metrics(
                file, threads=plan.threads_used, prompt_length=prompt, new_tokens=new, repetitions=plan.repetitions,
                memory=memory,
            )  # fmt: skip
            said = f"deploy/decode_ms_per_token and its like: {prompt} + {new} tokens, as many as the context holds"
            killed, notes = False, () if (prompt, new) == (plan.prompt_length, plan.new_tokens) else (said,)
        except UserError as error:
            metrics, killed = {"deploy/threads": float(plan.threads_used)}, memory is not None and memory.killed
            notes = (f"deploy/decode_ms_per_token and its like were left out: {error}",)
    taken = Deployed(format=format, metrics=metrics | dict(sizes), tags=how, notes=notes)
    return _judged(taken, plan, killed=killed)


def _runtime_of(file: Path) -> str:
    return f"onnxruntime-genai {PACKAGES['onnxruntime-genai']}" if file.is_dir() else f"xllamacpp {version()}"


def _judged(taken: Deployed, plan: TimingPlan, *, killed: bool = False) -> Deployed:
    """With the profile's answer, where one was named."""
    if plan.profile is None:
        return taken
    profile, found = plan.profile, fit(plan.profile, taken.metrics, killed=killed)
    notes = [f"device profile {profile.name} {EMULATES_NEITHER}"]
    if (how := taken.tags.get("edgequant.memory_limit")) is not None:
        notes.append(f"device profile {profile.name}: {how}")
    if plan.threads_used < profile.threads and not plan.left_out:
        notes.append(
            f"device profile {profile.name}: timed with {plan.threads_used} of its {profile.threads} threads, since "
            "this machine has no more cores"
        )
    tags = {"edgequant.device_profile": profile.name, "edgequant.device_limits": json.dumps(asdict(profile))}
    return replace(
        taken, metrics=taken.metrics | found.metrics, tags=taken.tags | tags, lead=(found.line,),
        notes=(*taken.notes, *notes),
    )  # fmt: skip


def source_that_ships(source: ModelSource, device_profile: str | None) -> ModelSource:
    """The source; refuses to try on a device what is no file for one.

    Raises:
        UserError: names it, and how to make one.
    """
    if device_profile is None or source.kind in RUN_AS_THEY_ARE or stated_scheme(source) is not None:
        return source
    raise UserError(
        f"device_profile {device_profile!r} needs a model that ships as a file: a .gguf, an ONNX folder or a "
        f"checkpoint of `edgequant ptq` or `qat`, got {source.name}; run `edgequant export --model "
        f"{source.location}` and evaluate what it writes"
    )
