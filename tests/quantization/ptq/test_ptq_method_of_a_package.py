"""A PTQ method that another package brings, in one file: known wherever edgequant's own are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from edgequant import models
from edgequant.errors import UserError
from edgequant.extensions import extensions
from edgequant.quantization.calibration import CalibrationSettings
from edgequant.quantization.ptq.methods import parse_method
from edgequant.quantization.ptq.quantize import quantize
from edgequant.quantization.ptq.settings import PtqSettings
from edgequant.quantization.qat.ptq_initialization import prepare_from_ptq
from edgequant.quantization.qat.settings import QatSettings
from edgequant.quantization.scheme import parse_scheme

METHODS = '''
from edgequant.quantization.ptq.methods import PtqMethod


def make(settings):
    from edgequant.quantization.arithmetic.affine import quantize_weight
    from edgequant.quantization.ptq.rounding import Rounding

    class Clipped(Rounding):
        def quantized(self, weight, spec):
            bound = 2 * weight.std(dim=1, keepdim=True)
            return quantize_weight(weight.clamp(-bound, bound), spec)

    return Clipped()


class Undone:
    """Gives every layer integers that are 0 throughout, once the block has them."""

    seen = []

    def apply(self, block):
        from edgequant.quantization.layers.fixed_weights import fix_codes, fixed_codes_of

        self.seen.append(block.name)
        for layer in block.layers.values():
            chosen = fixed_codes_of(layer)
            fix_codes(layer, chosen._replace(codes=0 * chosen.codes + chosen.zero_point.to(chosen.codes.dtype)))


TWO_SIGMA = PtqMethod(name="two_sigma", stage="round", description="clips to two deviations, to nearest", make=make)
UNDONE = PtqMethod(
    name="undone", stage="learn", description="forgets", make=lambda _: Undone(), needs_calibration=True,
    rounds_with="two_sigma",
)
NO_ROUNDING = PtqMethod(name="no_rounding", stage="round", description="makes what rounds nothing", make=lambda _: 3)
TAKEN = PtqMethod(name="rtn", stage="round", description="another rtn", make=make)
'''
LAYER = "model.layers.0.mlp.down_proj"


def install(folder: Path, *entries: str) -> Path:
    """A package of one file, laid out in a folder as pip does it, with entry points."""
    (folder / "sigma_methods.py").write_text(METHODS)
    info = folder / "sigma_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sigma-methods\nVersion: 1.0\n")
    named = "\n".join(f"{name.lower()} = sigma_methods:{name}" for name in entries)
    (info / "entry_points.txt").write_text(f"[edgequant.ptq_methods]\n{named}\n")
    return folder


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Install entries of the package for this process, until the test ends."""

    def use(*entries: str) -> None:
        (tmp_path / "site").mkdir()
        monkeypatch.syspath_prepend(str(install(tmp_path / "site", *entries)))
        extensions.cache_clear()

    yield use
    monkeypatch.undo()
    extensions.cache_clear()


@pytest.fixture
def command(edgequant, environment, tmp_path):
    """The command line beside the installed package."""
    (tmp_path / "site").mkdir()
    paths = f"{environment['PYTHONPATH']}:{install(tmp_path / 'site', 'TWO_SIGMA')}"
    return lambda *arguments: edgequant(*arguments, PYTHONPATH=paths)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))


def half_a_step(layer) -> torch.Tensor:
    """Half of the distance between integers for every weight of a converted layer [out, in]."""
    scale = layer.packed.unpacked().scale
    return (scale / 2).expand(-1, -1, layer.packed.spec.group_size).reshape(layer.packed.rows, -1)


@pytest.mark.long
def test_ptq_writes_a_checkpoint_with_the_integers_of_the_packages_method(command, tmp_path, tiny):
    done = command(
        "ptq", "--model", "tiny", "--scheme", "w4-g32", "--method", "two_sigma", "--output", "made", "--device", "cpu",
        "--calibration.num_calibration_samples", "4", "--calibration.sequence_length", "32",
        "--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layer = models.load(str(tmp_path / "made"), device="cpu").model.get_submodule(LAYER)  # the package is not needed
    weight = tiny.model.get_submodule(LAYER).weight.detach()
    bound = 2 * weight.std(dim=1, keepdim=True)
    clipped = weight.clamp(-bound, bound)
    found, near = layer.dequantized_weight(), 1.01 * half_a_step(layer)
    assert ((found - clipped).abs() <= near).all()
    assert ((found - weight).abs() > near).any()  # rounding to nearest errs by half a step at most


@pytest.mark.parametrize("workflow", ["ptq", "qat", "tune"])
def test_help_describes_the_packages_method(command, workflow):
    said = " ".join(command(workflow, "--help").stdout.split())
    assert "two_sigma (clips to two deviations, to nearest)" in said
    assert "rtn (to the nearest integer" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ptq", "--method", "two_sigmas"], "Did you mean two_sigma? Use rtn, mse_clip"),
        (["ptq", "--method", "two_sigma+gptq"], "round: rtn or mse_clip or gptq or two_sigma, then learn"),
        (["qat", "--qat.init_from", "two_sigmas"], "Did you mean two_sigma?"),
        (
            ["qat", "--qat.init_from", "two_sigma", "--qat.learnable_scales", "false"],
            "set qat.learnable_scales to true",
        ),
        (
            ["tune", "--space", "{init_from: {choice: [rtn, two_sigmas]}}", "--qat.learnable_scales", "true"],
            "Did you mean two_sigma?",
        ),
    ],
)
def test_messages_name_the_packages_method(command, arguments, said):
    done = command(*arguments, "--model", "tiny")
    assert done.returncode == 2
    assert said in done.stderr


def test_qat_starts_from_the_packages_method(packages, tiny, tokens):
    packages("TWO_SIGMA")
    assert QatSettings(init_from="two_sigma", learnable_scales=True).init_from == "two_sigma"
    rounded = copy.deepcopy(tiny.model)
    quantize(rounded, parse_scheme("w4-g32"), method="two_sigma")
    prepare_from_ptq(tiny.model, parse_scheme("w4-g32"), "two_sigma", [tokens])
    layer = tiny.model.get_submodule(LAYER)
    expected = rounded.get_submodule(LAYER).dequantized_weight()
    torch.testing.assert_close(layer.quantizer(layer.real_weight), expected)


def test_a_package_method_of_another_stage_works_on_blocks_behind_its_own_rounding(packages, tiny, tokens):
    packages("TWO_SIGMA", "UNDONE")
    assert parse_method("awq+undone").round.name == "two_sigma"
    with pytest.raises(UserError, match="undone decides by activations; give calibration text"):
        quantize(copy.deepcopy(tiny.model), parse_scheme("w4-g32"), method="undone")
    how = {"settings": PtqSettings(alphas=2), "calibration_settings": CalibrationSettings(precision="float32")}
    quantize(tiny.model, parse_scheme("w4-g32"), method="awq+undone", calibration=[tokens], **how)
    import sigma_methods

    assert sigma_methods.Undone.seen[-2:] == ["model.layers.0", "model.layers.1"]
    assert (tiny.model.get_submodule(LAYER).dequantized_weight() == 0).all()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("TAKEN", "two PTQ methods are called 'rtn'"),
        ("NO_ROUNDING", "no_rounding of stage round must make a rounding.Rounding, got int"),
        ("make", "'make' of sigma-methods must be a PtqMethod, got function"),
    ],
)
def test_a_package_that_brings_no_usable_method_is_named(packages, tiny, entry, said):
    packages(entry)
    with pytest.raises(UserError, match=said):
        quantize(tiny.model, parse_scheme("w4-g32"), method="no_rounding")
