"""Device profiles: what is read, what is refused, and whether measured figures fit, by arithmetic written down here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgequant.errors import UserError
from edgequant.evaluation.backends import memory_limit as limits
from edgequant.evaluation.backends.memory_limit import memory_limit
from edgequant.evaluation.devices.fit import fit
from edgequant.evaluation.devices.profile import DeviceProfile, bundled_profiles, read_profile

SMALL = {"threads": 2, "memory_gb": 0.5, "disk_gb": 0.1}
MEASURED = {
    "deploy/size_gb": 0.08, "deploy/peak_rss_gb": 0.3, "deploy/time_to_first_token_ms": 400.0,
    "deploy/decode_ms_per_token": 20.0,
}  # fmt: skip


def written(folder: Path, **keys) -> str:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(keys))
    return str(file)


def test_bundled_profiles_are_read_by_name_and_cite_or_say_that_they_assume(root):
    assert bundled_profiles() == ["edge-2c-1g", "phone-4gb", "raspberry-pi-5"]
    folder = root / "platform" / "edgequant" / "evaluation" / "devices" / "profiles"
    for name in bundled_profiles():
        profile = read_profile(name)
        assert profile.name == name and profile.description
        comment = (folder / f"{name}.yaml").read_text().partition("description")[0]
        assert "Source: https://" in comment or "an assumption" in comment.lower()
    assert read_profile("raspberry-pi-5").threads == 4 and read_profile("edge-2c-1g").threads == 2
    assert read_profile("phone-4gb").memory_gb < 4 and read_profile("edge-2c-1g").memory_gb < 1


def test_a_file_of_ones_own_is_named_after_itself_and_holds_whole_numbers_too(tmp_path):
    source = written(tmp_path, threads=1, memory_gb=1, disk_gb=2.5, min_tokens_per_second=5)
    assert read_profile(source) == DeviceProfile(
        name="own", threads=1, memory_gb=1, disk_gb=2.5, min_tokens_per_second=5
    )
    assert read_profile(written(tmp_path, name="camera", **SMALL)).name == "camera"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"memory_gb": float("nan")}, "memory_gb must be a finite number, got nan"),
        ({"disk_gb": float("inf")}, "disk_gb must be a finite number, got inf"),
        ({"memory_gb": -1}, "memory_gb must be above 0, got -1"),
        ({"threads": 0}, "threads must be above 0, got 0"),
        ({"threads": 2.5}, r"threads must be a whole number \(int\), got 2.5"),
        ({"threads": True}, r"threads must be a whole number \(int\), got True"),
        ({"threads": 10**7}, "threads must be at most 4096"),
        ({"memory_gb": "4 GB"}, "memory_gb must be a finite number, got '4 GB'"),
        ({"memory": 4}, "key 'memory' is unknown; did you mean memory_gb"),
        ({"threads": None}, "threads is missing"),
        ({"min_tokens_per_second": 0}, "min_tokens_per_second must be above 0"),
        ({"name": ""}, "name must be one line"),
        ({"name": "two\nlines"}, "name must be one line"),
        ({"description": 3}, "description must be text, got 3"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_in_one_line(tmp_path, keys, message):
    with pytest.raises(UserError, match=f"device_profile '.*own.yaml'.*{message}") as refused:
        read_profile(written(tmp_path, **SMALL | keys))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", ["raspberry-pi-6", "", " ", "no/such.yaml", "raspberry-pi-5.yaml", "Phone-4GB"])
def test_an_unknown_profile_is_refused_with_those_that_there_are(source):
    with pytest.raises(UserError, match=r"not found; .*edge-2c-1g, phone-4gb, raspberry-pi-5, or a YAML file"):
        read_profile(source)


def test_everything_within_its_limit_fits_and_what_is_left_is_told():
    found = fit(DeviceProfile(name="d", **SMALL), MEASURED)
    assert found.fits is True and found.metrics["deploy/fits"] == 1
    assert found.metrics["deploy/headroom_gb"] == pytest.approx(0.2)
    assert found.metrics["deploy/disk_headroom_gb"] == pytest.approx(0.02)
    assert found.metrics["deploy/tokens_per_second"] == pytest.approx(50)
    assert found.line == (
        "device profile d: fits: memory 0.3 GB (at most 0.5 GB), disk 0.08 GB (at most 0.1 GB), first token 400 ms, "
        "50 tokens/s"
    )


@pytest.mark.parametrize(
    ("limits_of_device", "changed", "said"),
    [
        ({"memory_gb": 0.29}, {}, "memory is over its limit"),
        ({"disk_gb": 0.07}, {}, "disk is over its limit"),
        ({"max_time_to_first_token_ms": 399}, {}, "first token is over its limit"),
        ({"min_tokens_per_second": 51}, {}, "decoding is under its limit"),
        ({"memory_gb": 0.29, "disk_gb": 0.07}, {}, "memory is over its limit and disk is over its limit"),
        # an unmeasured time does not hide a broken limit
        ({"disk_gb": 0.07}, {"deploy/peak_rss_gb": None}, "disk is over its limit"),
    ],
)
def test_a_broken_limit_is_named_with_its_figure(limits_of_device, changed, said):
    measured = {name: value for name, value in (MEASURED | changed).items() if value is not None}
    found = fit(DeviceProfile(name="d", **SMALL | limits_of_device), measured)
    assert found.fits is False and found.metrics["deploy/fits"] == 0
    assert f"does not fit, since {said}: " in found.line


def test_a_limit_is_kept_by_what_reaches_it():
    exact = {"memory_gb": 0.3, "disk_gb": 0.08, "max_time_to_first_token_ms": 400, "min_tokens_per_second": 50}
    assert fit(DeviceProfile(name="d", threads=1, **exact), MEASURED).fits is True


def test_what_was_not_measured_is_no_yes():
    sizes = {"deploy/size_gb": 0.08}
    found = fit(DeviceProfile(name="d", **SMALL), sizes)
    assert found.fits is None and "deploy/fits" not in found.metrics and "deploy/headroom_gb" not in found.metrics
    assert "not known whether it fits, since there is no figure of memory" in found.line
    killed = fit(DeviceProfile(name="d", **SMALL), sizes, killed=True)
    assert killed.fits is False and "ended for want of memory within 0.5 GB" in killed.line


def control_groups(folder: Path, monkeypatch, controllers: str = "cpu memory") -> Path:
    """What /sys/fs/cgroup looks like to a service that was given groups of its own; files do nothing."""
    own = folder / "user.slice" / "mine"
    own.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text(controllers)
    (own.parent / "cgroup.subtree_control").write_text(controllers)
    (own / "cgroup.subtree_control").write_text("")
    (folder / "self").write_text("1:name=systemd:/x\n0::/user.slice/mine\n")
    monkeypatch.setattr(limits, "_HIERARCHY", folder)
    monkeypatch.setattr(limits, "_OWN", folder / "self")
    monkeypatch.setattr(limits, "_remove", lambda group: None)  # real groups vanish with their files
    return own


def test_a_control_group_beside_the_own_one_holds_the_limit_and_the_process(tmp_path, monkeypatch):
    own = control_groups(tmp_path, monkeypatch)
    with memory_limit(0.25) as memory:
        assert memory.group.parent == own.parent and "enforced by cgroup v2" in memory.how
        assert (memory.group / "memory.max").read_text() == "250000000"
        assert (memory.group / "memory.swap.max").read_text() == "0"
        (memory.group / "cgroup.procs").unlink()
        command = [*memory.within, sys.executable, "-c", "import sys; print(sys.argv[1])", "it's $HOME"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "it's $HOME\n" and (memory.group / "cgroup.procs").read_text() == "0\n"
        assert not memory.killed
        (memory.group / "memory.events").write_text("low 0\nmax 12\noom 1\noom_kill 1\n")
        assert memory.killed


@pytest.mark.parametrize("controllers", ["cpu pids", ""])
def test_where_no_control_group_can_be_made_the_limit_is_compared_alone(tmp_path, monkeypatch, controllers):
    control_groups(tmp_path, monkeypatch, controllers)
    with memory_limit(0.25) as memory:
        assert memory.group is None and memory.within == () and not memory.killed
        assert "measured and compared" in memory.how and "nothing enforced" in memory.how


def test_without_cgroup_v2_the_limit_is_compared_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_HIERARCHY", tmp_path)
    with memory_limit(1.5) as memory:
        assert memory.limit == 1_500_000_000 and "cgroup v2 is not mounted" in memory.how
