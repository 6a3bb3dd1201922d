"""`Plan`: the phases of one model, each a workflow of its own that reads what the ones before wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.phases.ledger import digest_of
from edgequant.workflows.settings import RunSettings, WorkflowResult
from edgequant.workflows.steps.text_mix import with_replay

Order = Literal["before", "after", "joint"]
ORDERS: tuple[Order, ...] = ("before", "after", "joint")
PEERS = ("bnb-int8", "bnb-nf4")  # schemes that PTQ puts beside the pipeline's own
LORA_RATE = 5e-4
OF_FINETUNING = ("steps", "epochs", "max_tokens", "max_minutes", "batch_size", "sequence_length", "save_steps")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the phases of one model share; what one writes below `folder` is where the next one reads."""

    model: str
    scheme: str
    method: str
    source: str | None
    adapt: tuple[Order, ...]
    replay: str | None
    phases: tuple[str, ...]
    training: TrainingSettings
    evaluation: EvaluationSettings
    folder: Path
    device_profile: str | None
    register: bool
    run: RunSettings

    # ------------------------------------------------------------------------------------------------ what is where

    @property
    def dataset(self) -> str:
        """The corpus that the first phase built, else the bundled one."""
        built = self.folder / "corpus"
        return str(built) if (built / "dataset_dict.json").is_file() else "disaster"

    @property
    def own_test_split(self) -> str | None:
        """The corpus as what is evaluated on; None: the bundled documents."""
        return None if self.dataset == "disaster" else self.dataset

    @property
    def adaptation_text(self) -> str:
        """The corpus, with general text replayed where that is asked for."""
        return with_replay(self.dataset, self.replay)

    @property
    def adapted(self) -> Path:
        """The floating-point model that was adapted."""
        return self.folder / "finetune" / "merged"

    @property
    def quantized(self) -> Path:
        """The model as it came, quantised: by QAT where that is done, else by PTQ."""
        return self.folder / "qat" if "qat" in self.phases else self.folder / "ptq" / self.scheme

    def ordered(self, order: str) -> Path:
        """What an order of adapting and quantising delivers."""
        made = self.folder / f"adapt-{order}"
        return made / "merged" if order == "after" else made

    @property
    def delivered(self) -> str:
        """The checkpoint that is evaluated and exported: what QAT or PTQ made, or the model itself."""
        return str(self.quantized) if self.quantized.is_dir() else self.model

    # ------------------------------------------------------------------------------------------------------- inputs

    def inputs(self, phase: str) -> str:
        """Digest of what a phase's result depends on."""
        place = {name: value for name, value in asdict(self.run).items() if name not in ("resume", "experiment")}
        shared: dict[str, Any] = {"evaluation": self.evaluation, "run": place, "profile": self.device_profile}
        rounding = {"scheme": self.scheme, "method": self.method}
        training = rounding | {"training": self.training, "register": self.register}
        base: list[str | None] = [self.model]
        text = [*base, self.dataset]
        quantized = [*text, str(self.quantized)]
        given: dict[str, tuple[dict[str, Any], list[str | None]]] = {
            "corpus": ({}, [self.model, self.source]),
            "baseline": (shared, text),
            "ptq": (shared | rounding, text),
            "qat": (shared | training, text),
            "finetune": (shared | {"training": self.training, "replay": self.replay}, text),
            "adapt-before": (shared | training | {"by": "qat" in self.phases}, [*text, str(self.adapted)]),
            "adapt-after": (shared | training | {"replay": self.replay}, quantized),
            "adapt-joint": (shared | training | {"replay": self.replay}, text),
            "evaluate": (shared, [self.delivered, self.dataset]),
            "export": ({"profile": self.device_profile}, [self.delivered]),
        }
        return digest_of(*given[phase])

    # ------------------------------------------------------------------------------------------------------- phases

    @property
    def steps(self) -> dict[str, Callable[[], WorkflowResult]]:
        """What each phase does, by its name."""
        return {
            "corpus": self.corpus, "baseline": self.baseline, "ptq": self.ptq, "qat": self.qat,
            "finetune": self.finetune, "adapt-before": self.adapt_before, "adapt-after": self.adapt_after,
            "adapt-joint": self.adapt_joint, "evaluate": self.evaluate, "export": self.export,
        }  # fmt: skip

    def corpus(self) -> WorkflowResult:
        from edgequant.workflows.corpus import corpus

        target = str(self.folder / "corpus")
        return corpus(source=self.source, output=target, model=self.model, experiment=self.run.experiment)

    def baseline(self) -> WorkflowResult:
        from edgequant.workflows.baseline import baseline

        limit, own = self.evaluation.limit, self.own_test_split
        return baseline(model=self.model, dataset=own, evaluation=self.evaluation, limit=limit, run=self.run)

    def ptq(self) -> WorkflowResult:
        schemes = ",".join(dict.fromkeys((self.scheme, *PEERS)))
        return self._rounded(self.model, schemes, self.folder / "ptq", register=False)

    def qat(self) -> WorkflowResult:
        return self._trained(self.model, f"{self.dataset},self-generated", self.folder / "qat", adapt=False)

    def finetune(self) -> WorkflowResult:
        return self._finetuned(self.model, self.folder / "finetune", register=False)

    def adapt_before(self) -> WorkflowResult:
        """What was adapted, quantised as the model as it came was."""
        if "qat" in self.phases:
            text = f"{self.dataset},self-generated"
            return self._trained(str(self.adapted), text, self.ordered("before"), adapt=False)
        return self._rounded(str(self.adapted), self.scheme, self.ordered("before"), register=self.register)

    def adapt_after(self) -> WorkflowResult:
        """What was quantised, adapted within its integers, and judged against the model as it came."""
        made: dict[str, Any] = {"register": self.register, "baseline": self.model}
        return self._finetuned(str(self.quantized), self.folder / "adapt-after", **made)

    def adapt_joint(self) -> WorkflowResult:
        """Both at once: QAT that learns the text from a control that did."""
        return self._trained(self.model, self.adaptation_text, self.ordered("joint"), adapt=True)

    def evaluate(self) -> WorkflowResult:
        from edgequant.workflows.evaluate import evaluate

        limit, own = self.evaluation.limit, self.own_test_split
        return evaluate(model=self.delivered, dataset=own, evaluation=self.evaluation, limit=limit, run=self.run)

    def export(self) -> WorkflowResult:
        from edgequant.workflows.export import export

        return export(
            model=self.delivered, output=str(self.folder / "export"), device_profile=self.device_profile,
            experiment=self.run.experiment,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------------------- their steps

    def _rounded(self, model: str, schemes: str, output: Path, *, register: bool) -> WorkflowResult:
        from edgequant.workflows.ptq import ptq

        return ptq(
            model=model, scheme=schemes, method=self.method, dataset=self.dataset, evaluation=self.evaluation,
            output=str(output), device_profile=self.device_profile, register=register, run=self.run,
        )  # fmt: skip

    def _trained(self, model: str, dataset: str, output: Path, *, adapt: bool) -> WorkflowResult:
        from edgequant.workflows.qat import qat

        return qat(
            model=model, scheme=self.scheme, dataset=dataset, adapt=adapt, training=self.training,
            qat=QatSettings(init_from=self.method), evaluation=self.evaluation, output=str(output),
            device_profile=self.device_profile, register=self.register, run=self.run,
        )  # fmt: skip

    def _finetuned(self, model: str, output: Path, *, register: bool, baseline: str | None = None) -> WorkflowResult:
        from edgequant.workflows.finetune import finetune

        shared = {name: getattr(self.training, name) for name in OF_FINETUNING}
        return finetune(
            model=model, dataset=self.dataset, replay=self.replay,
            training=TrainingSettings(learning_rate=LORA_RATE, **shared),
            evaluation=self.evaluation, output=str(output), register=register, baseline=baseline, run=self.run,
        )  # fmt: skip
