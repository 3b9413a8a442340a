"""The experiments: sweeps and settings under a name."""

import pytest
from conftest import METHODS
from hydra import compose, initialize_config_dir

from fingerbench import config
from fingerbench.errors import UserError


def jobs(experiment):
    """Return the settings of each run that `experiment=NAME` stands for."""
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        whole = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    sweeps = [[]]
    for key, values in (whole.hydra.sweeper.params or {}).items():
        sweeps = [[*words, f"{key}={value}"] for words in sweeps for value in str(values).split(",")]
    return [config.compose([f"experiment={experiment}", *words]) for words in sweeps]


def test_the_tricks_of_naturalfinger_in_every_combination():
    runs = jobs("tricks")
    switches = ("adversarial_labels", "input_transforms", "discriminator_loss")
    assert len({tuple(run.method[name] for name in switches) for run in runs}) == len(runs) == 8
    assert len({run.label for run in runs}) == 8
    assert {run.method.name for run in runs} == {"naturalfinger"}


def test_every_gan_and_every_method_has_its_run():
    assert [run.label for run in jobs("gans")] == ["wgan_gp", "sagan", "logan", "contragan", "icrgan", "reacgan"]
    assert [run.label for run in jobs("methods")] == METHODS
    assert set(METHODS) <= set(config.options("method"))


@pytest.mark.parametrize("experiment", config.options("experiment"))
def test_every_experiment_composes(experiment):
    assert all(run.label for run in jobs(experiment))


def test_a_part_of_an_experiment_that_is_a_sweep_needs_no_flag():
    config.check(["experiment=methods", "method=akh,random"])
    with pytest.raises(UserError, match="add -m"):
        config.check(["experiment=metav_regression", "seed=0,1"])
