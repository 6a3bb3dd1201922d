import pytest
import yaml

from edgequant.errors import UserError
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.qat.settings import QatSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant_tune.search_space import FINETUNED, bundled_spaces, read_space
from edgequant_tune.space.composed_scheme import composed
from edgequant_tune.space.hyperparameter import configuration, configurations

SETTINGS = (TrainingSettings, QatSettings, CalibrationSettings)


def read(text: str):
    return read_space(yaml.safe_load(text), SETTINGS).space


def test_every_bundled_space_reads_for_its_method():
    assert set(bundled_spaces()) == {"finetune", "qat", "qat-schemes"}
    assert read_space("qat", SETTINGS) and read_space("qat-schemes", SETTINGS)
    assert read_space("finetune", (TrainingSettings, LoraSettings), others=FINETUNED)


def test_a_space_keeps_kinds_ends_and_steps_and_gives_the_same_ranges_to_optuna(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("learning_rate: {log_uniform: [1e-5, 1e-3]}\nsteps: {integers: [50, 200], step: 50}\n")
    rate, steps = read_space(str(file), SETTINGS).space
    drawn = rate.distribution()
    assert (drawn.low, drawn.high, drawn.log) == (1e-5, 1e-3, True)  # 1e-5 is text in YAML 1.1
    assert (steps.distribution().low, steps.distribution().high, steps.distribution().step) == (50, 200, 50)
    assert steps.contains(150) and not steps.contains(160) and not steps.contains(250)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learnin_rate: {uniform: [0, 1]}", "did you mean learning_rate"),
        ("banana: {uniform: [0, 1]}", "Valid: scheme, weight_bits"),
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
        ("lora_alpha: {uniform: [1, 2], when: {lora_rank: '>0'}}", "stand above it (nothing), got 'lora_rank'"),
        (
            "lora_rank: {choice: [0, 8]}\nlora_alpha: {uniform: [1, 2], when: {lora_rank: '>x'}}",
            "compare with a number",
        ),
        (
            "lora_rank: {choice: [0, 8]}\nlora_alpha: {uniform: [1, 2], when: {lora_rank: '>8'}}",
            "must hold for some of",
        ),
        ("lora_rank: {choice: [0, 8]}\nlora_alpha: {uniform: [1, 2], when: lora_rank}", "when must be a mapping"),
        (
            "lora_rank: {choice: [0, 8]}\nlora_alpha: {uniform: [1, 2], when: {lora_rank: []}}",
            "must name values, got []",
        ),
        ("seed: {choice: [1, 2]}\nlora_rank: {choice: [0, 8]}", "seed must be {replicates: 3}"),
        ("seed: {replicates: 0}\nlora_rank: {choice: [0, 8]}", "seed must be {replicates: 3}"),
        ("seed: {replicates: 3}", "must hold a hyperparameter beside seed"),
        ("scheme: {choice: [w8, w4-g32]}\nweight_bits: {choice: [3, 4]}", "got scheme and weight_bits"),
        ("base: {choice: [float, bnb-nf4]}", "'base' is unknown"),
    ],
)
def test_a_malformed_space_is_refused_with_the_name_and_the_fix(text, said):
    with pytest.raises(UserError) as refused:
        read(text)
    assert said in str(refused.value)


def test_an_absent_space_names_the_bundled_ones():
    with pytest.raises(UserError, match="qat-schemes"):
        read_space("no-such-space", SETTINGS)


def test_a_hyperparameter_counts_only_where_its_conditions_hold():
    space = read(
        "lora_rank: {choice: [0, 8]}\nlora_alpha: {choice: [4, 64], when: {lora_rank: '>0'}}\n"
        "init_from: {choice: [rtn, gptq, mse_clip]}\n"
        "num_calibration_samples: {choice: [8, 16], when: {init_from: [gptq], lora_rank: 8}}"
    )
    every = {"lora_rank": 8, "lora_alpha": 4, "init_from": "gptq", "num_calibration_samples": 16}
    assert configuration(space, every) == every
    assert configuration(space, every | {"lora_rank": 0}) == {"lora_rank": 0, "init_from": "gptq"}
    assert "num_calibration_samples" not in configuration(space, every | {"init_from": "rtn"})
    assert len(configurations(space, 100)) == 3 + 3 * 2 + 2 and configurations(space, 23) is None


def test_a_condition_on_what_does_not_count_does_not_hold():
    space = read(
        "sparsity: {choice: [0.0, 0.5]}\nsparsity_pattern: {choice: [unstructured, '2:4'], when: {sparsity: 0.5}}\n"
        "lora_rank: {choice: [0, 8], when: {sparsity_pattern: '!=unstructured'}}"
    )
    values = {"sparsity": 0.0, "sparsity_pattern": "2:4", "lora_rank": 8}
    assert configuration(space, values) == {"sparsity": 0.0}
    assert configuration(space, values | {"sparsity": 0.5}) == values | {"sparsity": 0.5}


@pytest.mark.parametrize(
    ("parts", "scheme"),
    [
        ({"weight_bits": 3}, "w3a8-g32+emb4"),
        ({"group_size": 64, "embedding_bits": 8}, "w4a8-g64+emb8"),
        ({"group_size": 0, "activation_bits": 16, "embedding_bits": 16}, "w4"),
        ({"symmetric": True, "size_budget": "bits_per_parameter=4.5"}, "w4a8-g32-sym+emb4@4.5bpp"),
        ({"size_budget": None}, "w4a8-g32+emb4"),
        ({"scheme": "w8", "size_budget": "megabytes=80"}, "w8@80MB"),
    ],
)
def test_bits_and_group_sizes_compose_a_scheme(parts, scheme):
    assert composed("w4a8-g32+emb4", parts) == {"scheme": scheme}


def test_parts_are_refused_where_the_scheme_has_none_and_where_they_make_none():
    assert composed("q4_0", {"learning_rate": 1.0}) == {}
    with pytest.raises(UserError, match="scheme 'q4_0' has no parts that could be searched, as weight_bits is"):
        composed("q4_0", {"weight_bits": 4})
    with pytest.raises(UserError, match="weight_bits must be from 2 to 8, got 9"):
        composed("w8", {"weight_bits": 9})
    with pytest.raises(UserError, match="embedding_bits must be from 2 to 8, or 16, got 12"):
        composed("w8", {"embedding_bits": 12})


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate: {log_uniform: [1e-5, 1e-2]}",
        "warmup_fraction: {uniform: [0, 0.2], step: 0.05}",
        "steps: {integers: [50, 200], step: 50}",
        "batch_size: {log_integers: [1, 64]}",
        "batch_size: {choice: [2, 4, 8]}",
    ],
)
def test_shares_of_a_range_are_values_that_the_search_could_come_to(text):
    (item,) = read(text)
    found = [item.at(index / 200) for index in range(200)]
    assert all(item.contains(value) for value in found)
    for end in item.values[:1], item.values[-1:]:
        assert min(abs(value - end[0]) / end[0] if end[0] else value for value in found) < 0.05
    if item.listed() is not None and item.kind != "log_integers":  # whose large ones are drawn seldom
        assert set(found) == set(item.listed())
    if item.kind != "choice":
        assert [item.share(value) for value in item.values] == [0, 1]
