"""What is trained, as objects that prepare a loaded model for training and write what training made of it."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgequant.files import write_atomically
from edgequant.folders import FINETUNED, atomic_folder, share_folder
from edgequant.models.adapters.quantized_base import BITSANDBYTES, record_base
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant.workflows.adaptation.bases import FLOAT, INTEGERS, lasting_name

if TYPE_CHECKING:
    from edgequant.models.loading import LoadedModel
    from edgequant.models.sources import ModelSource

ADAPTER, MERGED = "adapter", "merged"


class Written(NamedTuple):
    """What was written.

    Attributes:
        loaded: the model that a user would load, to be measured.
        delivered: its folder.
        whole: whether that is a model of its own, not an adapter.
        metrics: what writing it told.
    """

    loaded: Any
    delivered: Path
    whole: bool
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Way(ABC):
    """One way of adapting.

    Attributes:
        source: of the model, resolved; `given`, as the user named it.
        base: see `bases.check_base`.
        scheme: of the weights as they are delivered; `none` in floating point.
        dtype, device: in which it is measured, and where.
    """

    source: ModelSource
    given: str
    base: str
    scheme: str
    lora: LoraSettings
    dtype: str
    device: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders that it writes, below the output."""
        return (ADAPTER, MERGED)

    @property
    def ships(self) -> bool:
        """Whether what is delivered is integers that a runtime of devices takes as they are."""
        return self.base == INTEGERS and MERGED in self.parts

    @property
    def named_base(self) -> str:
        """The base as an adapter names it, wherever it is loaded from."""
        return lasting_name(self.source, self.given)

    def load(self) -> LoadedModel:
        """The model as it is trained: float32 where it is not integers."""
        from edgequant import models

        return models.load(self.source, dtype="float32", device=self.device)

    def before(self, loaded: LoadedModel) -> LoadedModel:
        """The model as it came, as it is measured: in the compute type of the comparison."""
        from edgequant import models

        return models.load(self.source, dtype=self.dtype, device=self.device)

    @property
    def checkpoint(self) -> Path | None:
        """Where the model as it came lies on disk, if it is integers."""
        return Path(self.source.location) if self.base == INTEGERS and self.source.kind == "folder" else None

    def fitting(self, training: TrainingSettings) -> TrainingSettings:
        """The settings as this way takes them."""
        return training

    @abstractmethod
    def prepare(self, loaded: LoadedModel, seed: int) -> Any:
        """Make a loaded model trainable; the model to train."""

    @abstractmethod
    def write(self, adapted: Any, tokenizer: Any, folder: Path) -> Written:
        """Write what training made of it below a folder, whole or not at all."""


class Adapters(Way):
    """LoRA beside a floating-point model's layers: the adapter, and the model that it is merged into."""

    def prepare(self, loaded: LoadedModel, seed: int) -> Any:
        import torch

        from edgequant.training.lora import attach

        torch.manual_seed(seed)
        return attach(loaded.model, self.lora, made_from=self.named_base)

    def write(self, adapted: Any, tokenizer: Any, folder: Path) -> Written:
        model = write_merged(adapted, tokenizer, folder, name=self.source.family, dtype=self.dtype, device=self.device)
        return Written(model, folder / MERGED, True, {})


class WholeModel(Way):
    """All weights of a floating-point model."""

    parts = (MERGED,)  # type: ignore[assignment]

    def prepare(self, loaded: LoadedModel, seed: int) -> Any:
        return loaded.model.requires_grad_(True)

    def write(self, adapted: Any, tokenizer: Any, folder: Path) -> Written:
        from edgequant.models.same_function.written import load_written

        share_folder(folder, FINETUNED)
        with atomic_folder(folder / MERGED) as target:
            _save_merged(adapted, tokenizer, target, self.source.family)
        found = load_written(
            folder / MERGED, adapted, tokenizer, dtype=self.dtype, device=self.device, rounded_activations=False
        )
        return Written(found.model, folder / MERGED, True, {})


class AdaptersApart(Way):
    """LoRA beside integers, bitsandbytes' (QLoRA) or a checkpoint's, which stay as they are; the adapter alone."""

    parts = (ADAPTER,)  # type: ignore[assignment]

    def load(self) -> LoadedModel:
        from edgequant import models
        from edgequant.models.adapters.quantized_base import bitsandbytes_config

        if self.base == INTEGERS:
            return super().load()
        compute = models.pick_dtype(self.dtype, models.pick_device(self.device))
        options = {"quantization_config": bitsandbytes_config(self.base, compute)}
        return models.load(self.source, dtype=compute, device=self.device, load_options=options)

    def before(self, loaded: LoadedModel) -> LoadedModel:
        return loaded if self.base in BITSANDBYTES else super().before(loaded)

    def prepare(self, loaded: LoadedModel, seed: int) -> Any:
        import torch

        from edgequant.quantization.adapters.integer_model import adapt_integers
        from edgequant.training.lora import attach
        from edgequant.workflows.adaptation.loftq import begin_adapters

        model: Any = loaded.model
        if self.base == INTEGERS:
            model = adapt_integers(model, rank=0, alpha=self.lora.alpha, targets="").model
        torch.manual_seed(seed)
        adapted = attach(model, self.lora, made_from=self.named_base)
        if self.lora.loftq_from is not None:
            begin_adapters(adapted, self.lora.loftq_from)
        return adapted

    def write(self, adapted: Any, tokenizer: Any, folder: Path) -> Written:
        from edgequant.models.same_function.integers_of_bitsandbytes import release_layout
        from edgequant.models.same_function.written import load_written

        share_folder(folder, FINETUNED)
        with atomic_folder(folder / ADAPTER) as target:
            record_base(target, self.scheme, self.checkpoint)
            _save_adapter(adapted, tokenizer, target)
        release_layout(adapted)
        dtype = self.dtype if self.base in BITSANDBYTES else "float32"
        rounds = (
            self.base in BITSANDBYTES or "a8" in self.scheme
        )  # bitsandbytes has a kernel of its own to measure with
        found = load_written(
            folder / ADAPTER, adapted, tokenizer, dtype=dtype, device=self.device, rounded_activations=rounds
        )
        return Written(found.model, folder / ADAPTER, False, {})


class IntegerUpdates(Way):
    """Updates of a checkpoint's integers and scales, which end in them: the checkpoint, in its scheme and size."""

    parts = (MERGED,)  # type: ignore[assignment]

    def fitting(self, training: TrainingSettings) -> TrainingSettings:
        """Not translated unasked: blocks that compute their weights anew take long to translate."""
        return replace(training, compile=False) if training.compile is None else training

    def prepare(self, loaded: LoadedModel, seed: int) -> Any:
        from edgequant.quantization.adapters.integer_model import adapt_integers
        from edgequant.workflows.adaptation.loftq import begin_updates

        adapted = adapt_integers(
            loaded.model, rank=self.lora.rank, alpha=self.lora.alpha, targets=self.lora.targets, seed=seed
        )
        if self.lora.loftq_from is not None:
            begin_updates(adapted, self.lora.loftq_from)
        adapted.model.integers = adapted
        return adapted.model

    def write(self, adapted: Any, tokenizer: Any, folder: Path) -> Written:
        from edgequant import models
        from edgequant.models.same_function.written import load_written
        from edgequant.quantization import checkpoint
        from edgequant.quantization.adapters.integer_model import merge_into_integers, share_of_moved

        integers = adapted.__dict__.pop("integers")
        moved = share_of_moved(integers)
        difference = merge_into_integers(integers, tokenizer)
        model, scheme = integers.model, integers.model.config.quantization_config.scheme
        models.cast(model, self._own_dtype() or models.pick_dtype(self.dtype, str(model.device)))
        share_folder(folder, FINETUNED)
        checkpoint.save(
            model, tokenizer, folder / MERGED, scheme, parameters=model.config.num_parameters_unquantized,
            made_from=self.source.family,
        )  # fmt: skip
        rounds = scheme.activation is not None
        found = load_written(folder / MERGED, model, tokenizer, device=self.device, rounded_activations=rounds)
        metrics = {"parity/relative_logit_difference": difference, "train/moved_integers": moved}
        return Written(found.model, folder / MERGED, True, metrics)

    def _own_dtype(self) -> str | None:
        """In which the checkpoint holds what is no integer, unless another type is asked for."""
        from edgequant import models

        stated = models.folder_config(self.checkpoint).get("dtype") if self.checkpoint else None
        return stated if self.dtype == "auto" and stated in models.DTYPES else None


def way_of(source: ModelSource, given: str, base: str, lora: LoraSettings, *, apart: bool, **place: str) -> Way:
    """The way that settings mean.

    Args:
        base: as `bases.check_base` settled it.
        place: `dtype` and `device`.
    """
    from edgequant.workflows.validate import stated_scheme

    stated = stated_scheme(source)
    scheme = stated.name if stated is not None else "none" if base == FLOAT else base
    kind: type[Way] = Adapters if lora.rank else WholeModel
    if base != FLOAT:
        kind = AdaptersApart if apart or base in BITSANDBYTES else IntegerUpdates
    return kind(source=source, given=given, base=base, scheme=scheme, lora=lora, **place)


def write_merged(adapted: Any, tokenizer: Any, folder: Path, *, name: str, dtype: str, device: str) -> Any:
    """Save a floating-point model's adapter and what it is merged into, below a folder; the model to measure.

    Args:
        adapted: of peft; used up.
        name: of the base, which the merged model goes by.
    """
    from edgequant.models.same_function.written import load_written
    from edgequant.training.lora import merge

    share_folder(folder, FINETUNED)
    with contextlib.ExitStack() as both:  # neither takes its place before both are written
        _save_adapter(adapted, tokenizer, both.enter_context(atomic_folder(folder / ADAPTER)))
        merged, target = merge(adapted, tokenizer), both.enter_context(atomic_folder(folder / MERGED))
        _save_merged(merged, tokenizer, target, name)
    place: dict[str, Any] = {"dtype": dtype, "device": device}
    return load_written(folder / MERGED, merged, tokenizer, **place, rounded_activations=False).model


def _save_adapter(adapted: Any, tokenizer: Any, folder: Path) -> None:
    adapted.save_pretrained(folder, save_embedding_layers=False)  # else peft asks the hub about the base
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):  # a set, which each process writes in another order
        config["target_modules"].sort()
    write_atomically(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True))
    _complete(folder, tokenizer)


def _save_merged(model: Any, tokenizer: Any, folder: Path, name: str) -> None:
    model.config.update({"edgequant_base": name})  # by which a folder called "merged" is known
    model.save_pretrained(folder)
    _complete(folder, tokenizer)


def _complete(folder: Path, tokenizer: Any) -> None:
    from edgequant.quantization.checkpoint import ensure_manifest

    tokenizer.save_pretrained(folder)
    ensure_manifest(folder)
