"""Whether what ships fits a device: measured figures against the profile's limits. Light: arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgequant.evaluation.devices.profile import DeviceProfile

EMULATES_NEITHER = (
    "emulates neither another instruction set nor memory bandwidth: times are this machine's, the device's differ"
)


class Fit(NamedTuple):
    """Attributes:
    fits: None: something that the profile limits could not be measured, and nothing that was is over its limit.
    metrics: `deploy/fits` (1 or 0, absent where that is not known), `deploy/headroom_gb` (memory that is left over,
        negative where it is too little), `deploy/disk_headroom_gb`, `deploy/tokens_per_second`.
    line: the answer with its figures, for people.
    """

    fits: bool | None
    metrics: dict[str, float]
    line: str


class _Limit(NamedTuple):
    """One figure beside its limit, both in `unit`; `most`: the limit is the greatest value, else the least."""

    name: str
    value: float | None
    bound: float
    unit: str
    most: bool = True

    @property
    def is_broken(self) -> bool:
        return self.value is not None and (self.value > self.bound if self.most else self.value < self.bound)

    def __str__(self) -> str:
        measured = "not measured" if self.value is None else f"{self.value:.4g} {self.unit}"
        return f"{self.name} {measured} ({'at most' if self.most else 'at least'} {self.bound:g} {self.unit})"


def fit(profile: DeviceProfile, metrics: Mapping[str, float], *, killed: bool = False) -> Fit:
    """Compare what was measured of a shipped file with what a device grants.

    Args:
        metrics: `deploy/...` of `shipped_metrics`; what is absent was not measured.
        killed: the runtime was ended for want of memory within the profile's limit.

    Example:
        fit(read_profile("edge-2c-1g"), {"deploy/size_gb": 0.09, "deploy/peak_rss_gb": 0.2}).fits
    """
    decode = metrics.get("deploy/decode_ms_per_token")
    speed = None if decode is None else 1000 / decode
    first = metrics.get("deploy/time_to_first_token_ms")
    memory, size = metrics.get("deploy/peak_rss_gb"), metrics.get("deploy/size_gb")
    limits = [_Limit("memory", memory, profile.memory_gb, "GB"), _Limit("disk", size, profile.disk_gb, "GB")]
    if profile.max_time_to_first_token_ms is not None:
        limits.append(_Limit("first token", first, profile.max_time_to_first_token_ms, "ms"))
    if profile.min_tokens_per_second is not None:
        limits.append(_Limit("decoding", speed, profile.min_tokens_per_second, "tokens/s", most=False))
    found = {} if memory is None else {"deploy/headroom_gb": profile.memory_gb - memory}
    found |= {} if size is None else {"deploy/disk_headroom_gb": profile.disk_gb - size}
    found |= {} if speed is None else {"deploy/tokens_per_second": speed}
    broken = [f"{limit.name} is {'over' if limit.most else 'under'} its limit" for limit in limits if limit.is_broken]
    broken += [f"the runtime was ended for want of memory within {profile.memory_gb:g} GB"] if killed else []
    unknown = [limit.name for limit in limits if limit.value is None]
    fits = False if broken else None if unknown else True
    told = [str(limit) for limit in limits]
    told += [f"first token {first:.4g} ms"] if first is not None and profile.max_time_to_first_token_ms is None else []
    told += [f"{speed:.4g} tokens/s"] if speed is not None and profile.min_tokens_per_second is None else []
    unmeasured = f"not known whether it fits, since there is no figure of {' and '.join(unknown)}"
    answer = {True: "fits", False: f"does not fit, since {' and '.join(broken)}", None: unmeasured}
    found |= {} if fits is None else {"deploy/fits": float(fits)}
    return Fit(fits, found, f"device profile {profile.name}: {answer[fits]}: {', '.join(told)}")
