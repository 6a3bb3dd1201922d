"""Settings and machines."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from situation import Place, Situation

TINY = ("--model", "tiny")


def command(*arguments: str) -> Callable[[Place], str]:
    return lambda place: place.edgequant(*arguments)


def recipe(content: str | bytes, workflow: str = "qat") -> Callable[[Place], str]:
    """A recipe of this content."""

    def run(place: Place) -> str:
        file = place.folder / "recipe.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.edgequant(workflow, "--config", "recipe.yaml", *TINY)

    return run


def broken_link(place: Place) -> str:
    (place.folder / "recipe.yaml").symlink_to("gone.yaml")
    return place.edgequant("ptq", "--config", "recipe.yaml")


def folder_for_a_file(place: Place) -> str:
    (place.folder / "predictions").mkdir()
    return place.edgequant("evaluate", "--squad_predictions", "predictions")


def search_space(content: str) -> Callable[[Place], str]:
    def run(place: Place) -> str:
        (place.folder / "space.yaml").write_text(content)
        return place.edgequant("tune", *TINY, "--space", "space.yaml")

    return run


def deleted_experiment(place: Place) -> str:
    import mlflow

    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("old"))
    return place.edgequant("corpus", *TINY, "--experiment", "old")


def stored_at(uri: str, make: Callable[[Path], None] = lambda folder: None) -> Callable[[Place], str]:
    """The command with another tracking store, whose file `make` makes."""

    def run(place: Place) -> str:
        make(place.folder)
        with mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": uri.replace("FOLDER", str(place.folder))}):
            return place.edgequant("corpus", *TINY)

    return run


def text_for_a_database(folder: Path) -> None:
    (folder / "other.db").write_text("notes of mine, long enough to be taken for the header of a database\n" * 9)


def foreign_database(folder: Path) -> None:
    database = sqlite3.connect(folder / "other.db")
    database.execute("CREATE TABLE customers (name TEXT)")
    database.commit()
    database.close()


def newer_schema(folder: Path) -> None:
    (folder / "other.db").write_bytes((folder / "mlflow.db").read_bytes())
    database = sqlite3.connect(folder / "other.db")
    database.execute("UPDATE alembic_version SET version_num = 'f00dfeed0000'")
    database.commit()
    database.close()


def file_for_artifacts(place: Place) -> str:
    (place.folder / "mlruns").write_text("")
    return place.edgequant("corpus", *TINY, "--experiment", "new")


def refused(given: str, how: str, line: str, run: Callable[[Place], str]) -> Situation:
    return Situation(given, how, "refused", line, run)


SITUATIONS = [
    refused(
        "a model's name that nobody knows", "ptq --model nope",
        "edgequant ptq: model 'nope' is unknown; give ...", command("ptq", "--model", "nope"),
    ),
    refused(
        "a revision of a model as an option of its own", "ptq --model Qwen/Qwen2.5-0.5B --revision v1",
        "edgequant ptq: option --revision is push's; a model of the hub is pinned by its name: --model "
        "OWNER/NAME@REVISION",
        command("ptq", "--model", "Qwen/Qwen2.5-0.5B", "--revision", "v1"),
    ),
    refused(
        "a revision that is none", "ptq --model Qwen/Qwen2.5-0.5B@",
        "edgequant ptq: model 'Qwen/Qwen2.5-0.5B@' is unknown; give ...OWNER/NAME@REVISION...",
        command("ptq", "--model", "Qwen/Qwen2.5-0.5B@"),
    ),
    refused(
        "the beginning of an option's name", "qat --training.step 3",
        "edgequant qat: option --training.step is unknown. Did you mean --training.steps? There are: ...",
        command("qat", *TINY, "--training.step", "3"),
    ),
    refused(
        "a compute type by another name", "evaluate --dtype bf16",
        "edgequant evaluate: dtype must be one of auto, float32, bfloat16, float16, got 'bf16'; write bfloat16",
        command("evaluate", *TINY, "--dtype", "bf16"),
    ),
    refused(
        "less than no doubt in correlations", "ptq --ptq.shrinkage -1",
        "edgequant ptq: ptq.shrinkage must be from 0 to 1, got -1.0",
        command("ptq", *TINY, "--ptq.shrinkage", "-1"),
    ),
    refused(
        "a device by another name", "qat --device gpu",
        "edgequant qat: device must be auto, cpu, cuda or cuda:N, got 'gpu'; write cuda",
        command("qat", *TINY, "--device", "gpu"),
    ),
    refused(
        "a device that is not supported", "export --device mps",
        "edgequant export: device must be auto, cpu, cuda or cuda:N, got 'mps'; mps is not supported, write cpu",
        command("export", *TINY, "--device", "mps"),
    ),
    refused(
        "a GPU that is not there", "finetune --device cuda:77",
        "edgequant finetune: device 'cuda:77' not found: torch sees ... CUDA devices; use ...",
        command("finetune", *TINY, "--device", "cuda:77"),
    ),
    refused(
        "a whole number written as a power", "qat --training.steps 1e3",
        "edgequant qat: training.steps must be a whole number (int) or null, got '1e3'; write 1000",
        command("qat", *TINY, "--training.steps", "1e3"),
    ),
    refused(
        "no number", "finetune --training.weight_decay nan",
        "edgequant finetune: training.weight_decay must be a finite number, got 'nan'",
        command("finetune", *TINY, "--training.weight_decay", "nan"),
    ),
    refused(
        "a list as text", "evaluate --evaluation.tasks boolq,squad",
        "edgequant evaluate: evaluation.tasks must be a list of texts, got 'boolq,squad'; write [boolq, squad]",
        command("evaluate", *TINY, "--evaluation.tasks", "boolq,squad"),
    ),
    refused(
        "an empty text, which the default would be taken for", "ptq --output ''",
        "edgequant ptq: option --output must not be empty, got ''; leave it out for its default",
        command("ptq", *TINY, "--output", ""),
    ),
    refused(
        "Python's None, which a folder would be called", "qat --output None",
        "edgequant qat: option --output must be text or null, got 'None'; write null, or leave it out",
        command("qat", *TINY, "--output", "None"),
    ),
    refused(
        "a seed that no generator takes", "qat --seed -1",
        "edgequant qat: seed must be from 0 to 4294967295, got -1; use such as 0, 1 or 2",
        command("qat", *TINY, "--seed", "-1"),
    ),
    refused(
        "sequences longer than the model's context", "qat --training.sequence_length 4096",
        "edgequant qat: training.sequence_length must be at most 2048, the context of tiny, got 4096",
        command("qat", *TINY, "--training.sequence_length", "4096"),
    ),
    refused(
        "a recipe with a key that stands there twice", "qat --config FILE",
        "edgequant qat: recipe 'recipe.yaml' is not YAML: line 1: key 'scheme' stands there twice; ...",
        recipe("scheme: w8\nscheme: w4-g32\n"),
    ),
    refused(
        "a recipe of another entry point", "qat --config FILE",
        "edgequant qat: recipe recipe.yaml: it is a recipe of ptq; key method is unknown. ...",
        recipe("method: rtn\nptq: {alphas: 3}\n"),
    ),
    refused(
        "an empty recipe", "finetune --config FILE",
        "edgequant finetune: recipe 'recipe.yaml' must hold lines such as `model: tiny`, got nothing",
        recipe("# nothing yet\n", "finetune"),
    ),
    refused(
        "a recipe in Latin-1", "ptq --config FILE",
        "edgequant ptq: recipe 'recipe.yaml' must be UTF-8 text, got 0xe9 at byte 10; convert it with iconv, ...",
        recipe("dataset: d\xe9sastre\n".encode("latin-1"), "ptq"),
    ),
    refused(
        "a recipe that is a link to nothing", "ptq --config LINK",
        "edgequant ptq: recipe 'recipe.yaml' must be a file, got a link to gone.yaml, which is not there; name a file",
        broken_link,
    ),
    refused(
        "a folder where a file is meant", "evaluate --squad_predictions FOLDER",
        "edgequant evaluate: squad_predictions must be a JSON file of question id to answer; 'predictions' must be a "
        "file, got a folder; name a file",
        folder_for_a_file,
    ),
    refused(
        "a search without end", "tune --space FILE",
        "edgequant tune: hyperparameter learning_rate: uniform must be finite numbers, got inf; e.g. ...",
        search_space("learning_rate: {uniform: [1e-5, .inf]}\n"),
    ),
    refused(
        "a search of settings that contradict each other", "tune --space FILE",
        "edgequant tune: the search space holds lora_rank 8, trainable scales, which do not go together: "
        "qat.lora_rank must be 0 with qat.trainable scales, ...; keep them apart with `when`",
        search_space("lora_rank: {choice: [0, 8]}\ntrainable: {choice: [all, scales]}\n"),
    ),
    refused(
        "a condition on what is not searched", "tune --space FILE",
        "edgequant tune: hyperparameter lora_alpha: when must name hyperparameters that stand above it (nothing), got "
        "'lora_rank'; write that one first",
        search_space("lora_alpha: {uniform: [4, 64], when: {lora_rank: '>0'}}\n"),
    ),
    refused(
        "bits that no scheme has", "tune --space FILE",
        "edgequant tune: hyperparameter weight_bits must be from 2 to 8, got 1",
        search_space("weight_bits: {integers: [1, 4]}\n"),
    ),
    refused(
        "the best of several seeds", "tune --space FILE",
        "edgequant tune: hyperparameter seed must be {replicates: 3}: ..., got {'choice': [1, 2]}; ...",
        search_space("lora_rank: {choice: [0, 8]}\nseed: {choice: [1, 2]}\n"),
    ),
    refused(
        "an objective that no task has", "tune --objectives '[min:domain/perplexty]'",
        "edgequant tune: objective 'domain/perplexty' is not measured; did you mean domain/perplexity? domain has ...",
        command("tune", *TINY, "--objectives", "[min:domain/perplexty]"),
    ),
    refused(
        "a policy that is not there", "tune --policy strict",
        "edgequant tune: policy 'strict' not found; give a YAML file or one of default",
        command("tune", *TINY, "--policy", "strict"),
    ),
    refused(
        "a push to nowhere", "push --model small",
        "edgequant push: repo must be OWNER/NAME of letters, digits, . _ and -, got nothing; e.g. --repo me/small",
        command("push", "--model", "small"),
    ),
    refused(
        "a repository with a part too many", "push --repo a/b/c",
        "edgequant push: repo must be OWNER/NAME of letters, digits, . _ and -, got 'a/b/c'; e.g. --repo me/small",
        command("push", "--repo", "a/b/c"),
    ),
    refused(
        "a branch that git refuses", "push --repo me/small --revision 'a b'",
        "edgequant push: revision must be the name of a branch, got 'a b'; leave it out for main",
        command("push", "--repo", "me/small", "--revision", "a b"),
    ),
    refused(
        "a push without a network", "push --repo me/small",
        "edgequant push: https://huggingface.co cannot be reached (offline, or HF_HUB_OFFLINE is set); connect ...",
        command("push", "--repo", "me/small"),
    ),
    refused(
        "an experiment that was deleted", "corpus --experiment old",
        "edgequant corpus: experiment 'old' was deleted in ...; bring it back with `mlflow experiments restore "
        "--experiment-id ...`, or choose another with --experiment",
        deleted_experiment,
    ),
    refused(
        "a file where MLflow's artifacts are to lie", "corpus --experiment new",
        "edgequant corpus: artifacts of experiment 'new' go to 'mlruns', which cannot be written to: ...",
        file_for_artifacts,
    ),
    refused(
        "a tracking server that does not answer", "MLFLOW_TRACKING_URI=http://127.0.0.1:9 corpus",
        "edgequant corpus: tracking store 'http://127.0.0.1:9' cannot be used: it does not answer; start ...",
        stored_at("http://127.0.0.1:9"),
    ),
    refused(
        "a tracking store that is a text file", "MLFLOW_TRACKING_URI=sqlite:///FILE corpus",
        "edgequant corpus: tracking store ... cannot be used: file is not a database; name another store in ...",
        stored_at("sqlite:///FOLDER/other.db", text_for_a_database),
    ),
    refused(
        "another program's database as tracking store", "MLFLOW_TRACKING_URI=sqlite:///FILE corpus",
        "edgequant corpus: tracking store ... cannot be used: it is another program's database, with a table "
        "'customers'; ...",
        stored_at("sqlite:///FOLDER/other.db", foreign_database),
    ),
    refused(
        "a tracking store of another MLflow", "MLFLOW_TRACKING_URI=sqlite:///FILE corpus",
        "edgequant corpus: tracking store ... cannot be used: Detected out-of-date database schema (found version "
        "f00dfeed0000, ...",
        stored_at("sqlite:///FOLDER/other.db", newer_schema),
    ),
]  # fmt: skip
