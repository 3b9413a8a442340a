"""Profiles and recipes: what they compose to, and in which type networks train."""

from types import SimpleNamespace

import pytest
import torch
from conftest import METHODS

from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.nets import ARCHITECTURES, COMPILED_ON_GPU, FLOAT32_ON_CPU
from fingerbench.workshop import bfloat16_unit, pick_bfloat16, pick_compiled, pick_jobs

CPU = torch.device("cpu")
PROFILES = config.options("profile")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_in_every_profile(profile, method):
    settings = config.compose([f"profile={profile}", f"method={method}", "data=cifar10"])
    assert (settings.profile, settings.method.name) == (profile, method)
    config.build(settings.method)


@pytest.mark.parametrize("gan", config.options("gan"))
def test_a_profile_other_than_the_papers_shrinks_every_gan(gan):
    composed = {profile: config.compose([f"profile={profile}", f"gan={gan}"]).gan for profile in PROFILES}
    for profile, chosen in composed.items():
        assert (chosen.steps < composed["paper"].steps) == (profile != "paper")
        config.build(chosen)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_a_recipe_of_its_name_and_the_user_may_name_another(profile):
    named = config.compose([f"profile={profile}", f"recipe={profile}"]).zoo
    assert config.compose([f"profile={profile}"]).zoo == named
    fast = config.compose([f"profile={profile}", "recipe=fast"]).zoo
    assert fast.training == config.compose(["profile=paper", "recipe=fast"]).zoo.training
    assert (fast.training == named.training) == (profile == "wide")
    assert fast.width == named.width
    assert fast.distill == {**fast.training, "lr": 0.2}
    assert (named.distill == named.training) == (profile != "wide")


def test_lite_sees_as_many_images_as_it_says():
    settings = config.compose(["profile=lite", "data=cifar10"])
    assert settings.zoo.training.epochs * 25_000 == 50_000
    assert settings.zoo.knockoff.epochs * settings.data.transfer == 20_000
    assert config.compose(["profile=paper", "data=cifar10"]).data.transfer is None
    assert config.compose(["profile=lite", "data=cifar10", "data.transfer=50000"]).data.transfer == 50_000


@pytest.mark.parametrize(("amx", "avx512", "unit"), [(0, 0, None), (0, 1, "AVX-512"), (1, 1, "AMX"), (1, 0, "AMX")])
def test_auto_trains_in_bfloat16_where_it_is_faster(monkeypatch, amx, avx512, unit):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    low = {name for name in ARCHITECTURES if pick_bfloat16("auto", CPU, name)}
    assert low == (set(ARCHITECTURES) - set(FLOAT32_ON_CPU) if unit else set())
    assert bfloat16_unit() == unit
    assert pick_bfloat16("bfloat16", CPU, "mobilenetv2") and not pick_bfloat16("float32", CPU, "resnet18")
    with pytest.raises(UserError, match="unknown precision 'float23'"):
        pick_bfloat16("float23", CPU, "resnet18")


@pytest.mark.parametrize(("gib", "jobs"), [(4, 1), (24, 2), (139, 8)])
def test_a_gpu_has_as_many_workers_as_its_memory_takes_and_no_more_than_cores(monkeypatch, gib, jobs):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
    assert (pick_jobs(torch.device("cuda")), pick_jobs(CPU)) == (jobs, 8)


def test_on_a_gpu_networks_are_compiled_that_gain_by_it_where_they_can_be(monkeypatch):
    monkeypatch.setattr("fingerbench.workshop._compiles", lambda device: True)
    gpu = torch.device("cuda")
    assert {name for name in ARCHITECTURES if pick_compiled("auto", gpu, name)} == set(COMPILED_ON_GPU)
    assert not any(pick_compiled("auto", CPU, name) for name in ARCHITECTURES)
    assert pick_compiled("all", CPU, "resnet18") and not pick_compiled("none", gpu, "inceptionv3")
    monkeypatch.setattr("fingerbench.workshop._compiles", lambda device: False)
    assert not pick_compiled("auto", gpu, "inceptionv3")
    with pytest.raises(UserError, match="unknown compiled 'some'"):
        pick_compiled("some", gpu, "resnet18")


def test_wide_is_all_of_fingerbench_at_full_width_and_halves_the_time_of_students_alone():
    wide, paper = (config.compose([f"profile={name}", "recipe=fast", "data=cifar10"]).zoo for name in ("wide", "paper"))
    assert wide == paper
    named = config.compose(["profile=wide", "data=cifar10"]).zoo
    differ = {key for key in wide if wide[key] != named[key]}
    assert differ == {"distill"} and named.distill == {**wide.distill, "epochs": wide.distill.epochs / 2}
