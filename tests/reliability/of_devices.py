"""Devices that a shipped file is to fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from situation import Place, Situation

TINY = ("--model", "tiny")
GOOD = "threads: 2\nmemory_gb: 1\ndisk_gb: 1\n"


def command(*arguments: str) -> Callable[[Place], str]:
    return lambda place: place.edgequant(*arguments)


def profile(content: str | bytes, workflow: str = "export", name: str = "device.yaml") -> Callable[[Place], str]:
    """A profile of this content, for a workflow on `tiny`."""

    def run(place: Place) -> str:
        (place.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.edgequant(workflow, *TINY, "--device_profile", name)

    return run


def named_pipe(place: Place) -> str:
    os.mkfifo(place.folder / "device.yaml")
    return place.edgequant("qat", *TINY, "--device_profile", "device.yaml")


def folder(place: Place) -> str:
    (place.folder / "device").mkdir()
    return place.edgequant("ptq", *TINY, "--device_profile", "device")


def tried(limits: str) -> Callable[[Place], str]:
    """An exported file of `tiny` on a device of these limits."""

    def run(place: Place) -> str:
        (place.folder / "device.yaml").write_text(limits)
        return place.edgequant("export", *TINY, "--output", "out", "--device_profile", "device.yaml")

    return run


def floating(place: Place) -> str:
    return place.edgequant("evaluate", "--model", Path(place.tiny_folder), "--device_profile", "phone-4gb")


SITUATIONS = [
    Situation(
        "a device that nobody described", "export --device_profile rasberry-pi-5", "refused",
        "edgequant export: device_profile 'rasberry-pi-5' not found; did you mean raspberry-pi-5? give one of "
        "edge-2c-1g, phone-4gb, raspberry-pi-5, or a YAML file",
        command("export", *TINY, "--device_profile", "rasberry-pi-5"),
    ),
    Situation(
        "an empty name of a device", "qat --device_profile ''", "refused",
        "edgequant qat: option --device_profile must not be empty, got ''; leave it out for its default",
        command("qat", *TINY, "--device_profile", ""),
    ),
    Situation(
        "folder in place of a profile", "ptq --device_profile FOLDER", "refused",
        "edgequant ptq: device_profile 'device' must be a file, got a folder; name a file", folder,
    ),
    Situation(
        "named pipe in place of a profile", "qat --device_profile FILE", "refused",
        "edgequant qat: device_profile 'device.yaml' must be a file, got no regular file (a pipe or device); name a "
        "file",
        named_pipe,
    ),
    Situation(
        "profile that is a GGUF file", "export --device_profile FILE", "refused",
        "edgequant export: device_profile 'device.yaml' must be UTF-8 text, got ...", profile(b"GGUF\x03\x00\xff\xfe"),
    ),
    Situation(
        "profile that is a list", "export --device_profile FILE", "refused",
        "edgequant export: device_profile 'device.yaml' must hold lines such as `threads: 4`, got a list",
        profile("- threads: 4\n"),
    ),
    Situation(
        "profile with a memory limit that is NaN", "export --device_profile FILE", "refused",
        "edgequant export: device_profile 'device.yaml': memory_gb must be a finite number, got nan",
        profile("threads: 2\nmemory_gb: .nan\ndisk_gb: 1\n"),
    ),
    Situation(
        "profile with a negative disk", "qat --device_profile FILE", "refused",
        "edgequant qat: device_profile 'device.yaml': disk_gb must be above 0, got -1; leave out a limit that is none",
        profile("threads: 2\nmemory_gb: 1\ndisk_gb: -1\n", "qat"),
    ),
    Situation(
        "profile with a limit in words", "ptq --device_profile FILE", "refused",
        "edgequant ptq: device_profile 'device.yaml': memory_gb must be a finite number, got '512 MB'",
        profile("threads: 2\nmemory_gb: 512 MB\ndisk_gb: 1\n", "ptq"),
    ),
    Situation(
        "profile without a memory limit", "pipeline --device_profile FILE", "refused",
        "edgequant pipeline: device_profile 'device.yaml' must have threads, memory_gb, disk_gb, memory_gb "
        "is missing; add it",
        profile("threads: 2\ndisk_gb: 1\n", "pipeline"),
    ),
    Situation(
        "profile with a key that nobody knows", "tune --device_profile FILE", "refused",
        "edgequant tune: device_profile 'device.yaml': key 'ram_gb' is unknown; ...keys are name, "
        "threads, memory_gb, ...",
        profile(f"{GOOD}ram_gb: 2\n", "tune"),
    ),
    Situation(
        "profile in which a key stands twice", "export --device_profile FILE", "refused",
        "edgequant export: device_profile 'device.yaml' is not YAML: ...key 'threads' stands there twice...",
        profile(f"{GOOD}threads: 4\n"),
    ),
    Situation(
        "threads beside a profile's", "export --device_profile edge-2c-1g --threads 4", "refused",
        "edgequant export: threads must be left out with device_profile, got 4; edge-2c-1g has 2: ...",
        command("export", *TINY, "--device_profile", "edge-2c-1g", "--threads", "4"),
    ),
    Situation(
        "no threads to time with", "ptq --threads 0", "refused",
        "edgequant ptq: threads must be from 1 to 4096, got 0; leave it out for the physical cores",
        command("ptq", *TINY, "--threads", "0"),
    ),
    Situation(
        "model in floating point on a device", "evaluate --model FOLDER --device_profile phone-4gb", "refused",
        "edgequant evaluate: device_profile 'phone-4gb' needs a model that ships as a file: ...", floating,
    ),
    Situation(
        "constraint that is none", "tune --constraints '[deploy/size_gb<0.1]'", "refused",
        "edgequant tune: constraint must be METRIC<=NUMBER or METRIC>=NUMBER, as deploy/size_gb<=0.1, got "
        "'deploy/size_gb<0.1'",
        command("tune", *TINY, "--constraints", "[deploy/size_gb<0.1]"),
    ),
    Situation(
        "constraint on what no device was named for", "tune --constraints '[deploy/fits>=1]'", "refused",
        "edgequant tune: constraint 'deploy/fits' needs a device_profile, such as edge-2c-1g; name one",
        command("tune", *TINY, "--constraints", "[deploy/fits>=1]"),
    ),
    Situation(
        "one and a half GPUs for a trial", "tune --gpus_per_trial 1.5", "refused",
        "edgequant tune: gpus_per_trial must be a whole number, or a share below 1, got 1.5; use 1 or 2",
        command("tune", *TINY, "--gpus_per_trial", "1.5"),
    ),
    Situation(
        "no memory for a trial", "tune --memory_per_trial_gb 0", "refused",
        "edgequant tune: memory_per_trial_gb must be above 0, or none, got 0...",
        command("tune", *TINY, "--memory_per_trial_gb", "0"),
    ),
    Situation(
        "storage of a kind that nobody knows", "tune --storage_path bucket://models", "refused",
        "edgequant tune: storage_path must be a folder or an address such as s3://bucket/folder, got "
        "'bucket://models'; "
        "its store must be one of s3, gs, abfs, hdfs, file",
        command("tune", *TINY, "--storage_path", "bucket://models"),
    ),
    Situation(
        "address of a client of Ray", "tune --address ray://head:10001", "refused",
        "edgequant tune: address must be that of Ray's head node, HOST:6379, or auto, got 'ray://head:10001', ...",
        command("tune", *TINY, "--address", "ray://head:10001"),
    ),
    Situation(
        "warm start from a run that is not there", "tune --warm_start 12ab", "refused",
        "edgequant tune: warm_start '12ab' must be the id of a search's run in this store: ...",
        command("tune", *TINY, "--warm_start", "12ab"),
    ),
    Situation(
        "successive halving by a loss that says nothing", "tune --scheduler asha --objectives '[boolq/accuracy]'",
        "refused",
        "edgequant tune: scheduler asha compares losses on held-out text, which do not predict boolq/accuracy; use "
        "none",
        command("tune", *TINY, "--scheduler", "asha", "--objectives", "[boolq/accuracy]"),
    ),
    Situation(
        "device smaller than llama.cpp itself", "export --device_profile FILE", "told",
        "device profile device: does not fit, since memory is over its limit: memory ... GB (at most 0.005 GB), ...",
        tried("threads: 1\nmemory_gb: 0.005\ndisk_gb: 1\n"),
    ),
    Situation(
        "device faster than any", "export --device_profile FILE", "told",
        "device profile device: does not fit, since decoding is under its limit: ... tokens/s (at least 1e+09 "
        "tokens/s), ...",
        tried(f"{GOOD}min_tokens_per_second: 1e9\n"),
    ),
]  # fmt: skip
