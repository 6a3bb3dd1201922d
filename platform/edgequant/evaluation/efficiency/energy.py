"""Energy of greedy decoding through codecarbon, offline, where the hardware tells how much it draws."""

from __future__ import annotations

import logging

from edgequant.evaluation.backends.language_model import LanguageModel


def energy_metrics(
    model: LanguageModel, *, prompt_length: int, new_tokens: int, repetitions: int, seed: int
) -> dict[str, float]:
    """Energy per decoded token of plain `generate` at batch 1.

    codecarbon reads RAPL on the CPU and NVML on the GPU; where it finds neither it multiplies a typical draw by time.
    Then nothing is reported, because a guess is not a measurement.

    Returns:
        `energy/joules_per_token`, `energy/total_wh`, and `energy/measured_cpu`, `energy/measured_gpu` as 0 or 1; empty
        where codecarbon is absent or the hardware does not tell.
    """
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        return {}
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    # The country only matters for grams of CO2, which are not reported.
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA", save_to_file=False, log_level="critical", measure_power_secs=1, allow_multiple_runs=True
    )
    tracker.start()
    try:
        decoded = sum(
            timing.new_tokens
            for timing in model.decode_timings("generate", prompt_length, 1, new_tokens, repetitions, seed)
        )
    finally:
        tracker.stop()
    data = tracker.final_emissions_data
    cpu, gpu = _measures_cpu(tracker), float(getattr(data, "gpu_energy", 0.0)) > 0
    if not (cpu or gpu):
        return {}
    kilowatt_hours = (float(data.cpu_energy) if cpu else 0.0) + float(data.gpu_energy)
    if kilowatt_hours <= 0:  # over before the counter's next step
        return {}
    return {
        "energy/joules_per_token": 3.6e6 * kilowatt_hours / max(1, decoded),
        "energy/total_wh": 1000 * kilowatt_hours,
        "energy/measured_cpu": float(cpu),
        "energy/measured_gpu": float(gpu),
    }


def _measures_cpu(tracker: object) -> bool:
    hardware = getattr(tracker, "_hardware", [])
    modes = {str(getattr(part, "_mode", "")) for part in hardware if type(part).__name__ == "CPU"}
    return bool(modes & {"intel_rapl", "intel_power_gadget", "windows_emi"})
