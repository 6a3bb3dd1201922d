"""What the promotion policy asks of a version by itself: a search that does not keep it finds what is then refused."""

from __future__ import annotations

from collections.abc import Collection

from edgequant_registry.policy import Gate, read_policy
from edgequant_tune.objectives import Constraint

# Of a qat trial, whatever its objectives; other absolute gates are no business of a search.
MEASURED = (
    *("size/reduction_vs_fp16", "size/reduction_vs_fp32", "size/checkpoint_gb", "size/bits_per_parameter"),
    *("deploy/reduction_vs_fp16", "deploy/size_gb", "parity/argmax_agreement", "parity/max_logit_error"),
)


def gates_of(policy: str | None, method: str, bound: Collection[str]) -> tuple[Constraint, ...]:
    """Absolute gates on what every trial measures, as constraints; none of a floating-point model, which ships nothing.

    Args:
        policy: name of a bundled policy or a YAML file; None: none.
        bound: metrics that have a constraint of their own.

    Raises:
        UserError: no such policy, or one that cannot be read.
    """
    if policy is None or method == "finetune":
        return ()
    gates = [gate for gate in read_policy(policy).gates if gate.severity == "fail" and gate.metric in MEASURED]
    return tuple(_constraint(gate) for gate in gates if gate.against is None and gate.metric not in bound)


def _constraint(gate: Gate) -> Constraint:
    side, value = gate.bound
    return Constraint(gate.metric, ">=" if side == "min" else "<=", value)
