import pytest
import yaml

from edgequant.errors import UserError
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant_tune.search_space import bundled_spaces, read_space

SETTINGS = (TrainingSettings, QatSettings, CalibrationSettings)


def read(text: str):
    return read_space(yaml.safe_load(text), SETTINGS)


def test_every_bundled_space_reads_for_its_method():
    assert set(bundled_spaces()) == {"finetune", "qat", "qat-schemes"}
    assert read_space("qat", SETTINGS) and read_space("qat-schemes", SETTINGS)
    assert read_space("finetune", (TrainingSettings, LoraSettings), with_scheme=False)


def test_a_space_keeps_kinds_ends_and_steps_and_gives_the_same_ranges_to_optuna(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("learning_rate: {log_uniform: [1e-5, 1e-3]}\nsteps: {integers: [50, 200], step: 50}\n")
    rate, steps = read_space(str(file), SETTINGS)
    drawn = rate.distribution()
    assert (drawn.low, drawn.high, drawn.log) == (1e-5, 1e-3, True)  # 1e-5 is text in YAML 1.1
    assert (steps.distribution().low, steps.distribution().high, steps.distribution().step) == (50, 200, 50)
    assert steps.contains(150) and not steps.contains(160) and not steps.contains(250)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learnin_rate: {uniform: [0, 1]}", "did you mean learning_rate"),
        ("banana: {uniform: [0, 1]}", "Valid: scheme, steps, epochs"),
        ("learning_rate: 3", "log_uniform"),
        ("learning_rate: {log_uniform: [1e-3, 1e-5]}", "low < high"),
        ("learning_rate: {log_uniform: [0, 1e-5]}", "above 0"),
        ("learning_rate: {uniform: [0.1, x]}", "'x'"),
        ("steps: {uniform: [10, 20]}", "integers"),
        ("steps: {integers: [10.5, 20]}", "integers must be whole numbers, got 10.5"),
        ("observer: {uniform: [0, 1]}", "choice"),
        ("observer: {choice: [minmax, banana]}", "'banana'"),
        ("batch_size: {choice: [2, four]}", "choice must be of int, got 'four'"),
        ("batch_size: {choice: [2, 2]}", "must name different values, got [2, 2]"),
        ("scheme: {choice: [w4-g32, w44]}", "w44"),
        ("learning_rate: {log_uniform: [1e-5, 1e-3], step: 1e-5}", "step"),
        ("{}", "must hold lines such as"),
    ],
)
def test_a_malformed_space_is_refused_with_the_name_and_the_fix(text, said):
    with pytest.raises(UserError) as refused:
        read(text)
    assert said in str(refused.value)


def test_an_absent_space_names_the_bundled_ones():
    with pytest.raises(UserError, match="qat-schemes"):
        read_space("no-such-space", SETTINGS)
