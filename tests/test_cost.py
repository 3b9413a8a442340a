"""What things cost: images, FLOP, and the time left that follows from them."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import slow_but

from fingerbench import config, nets
from fingerbench.bench import Bench
from fingerbench.cost import (
    Adversaries,
    Effort,
    MethodOutline,
    ModelOutline,
    Network,
    Other,
    Pass,
    Sizes,
    attack_work,
    effort,
    forward_flop,
    method_work,
)
from fingerbench.eta import Eta
from fingerbench.store import Spec
from fingerbench.zoo.adversarial import AT_ONCE

SIZES = Sizes((3, 32, 32), half=25000, finetune=5000, test=5000, transfer=50000)


@pytest.fixture(scope="module")
def bench():
    return Bench(config.compose(["profile=paper"]))


def flop(bench, name):
    return effort(bench.models[name], SIZES).flop


def network(architecture, width=1.0):
    return Network(architecture, 10, width, SIZES.shape)


def test_flop_of_a_convolution_are_counted_by_hand():
    with torch.device("meta"):
        layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert forward_flop(layer, (3, 16, 16)) == 2 * 3 * 8 * 9 * 16 * 16


def test_a_gradient_costs_what_the_forward_pass_does():
    one = network("resnet18")
    assert one.flop("train") == 3 * one.flop("answer") and one.flop("attack") == 2 * one.flop("answer")


def test_inceptionv3_is_more_than_resnet18_and_width_counts_squared():
    assert network("inceptionv3").flop("answer") > 20 * network("resnet18").flop("answer")
    assert 3.5 < network("resnet18").flop("answer") / network("resnet18", 0.5).flop("answer") < 4


def test_every_architecture_has_a_cost():
    for architecture in nets.ARCHITECTURES:
        assert network(architecture, 0.125).flop("answer") > 1e5, architecture


@pytest.mark.parametrize("name", slow_but(("sagan",), config.options("gan")))
def test_every_gan_has_a_cost_and_a_step_is_most_of_it(name):
    gan = Adversaries(config.build(config.compose([f"gan={name}", "gan.width=0.125"]).gan), 10, (3, 16, 16))
    assert 0 < gan.flop("answer") < gan.flop("attack") < gan.flop("train")


def test_a_training_is_epochs_times_images(bench):
    outline = ModelOutline(network("resnet18"), None, SIZES, augmented=True)
    work = attack_work(bench.attacks["scratch"], "resnet18", outline)
    assert work == {Pass("train", network("resnet18"), 128): 60 * 25000}


def test_the_victim_answers_each_epoch_only_where_images_change(bench):
    for augmented, asked, batch in ((True, 30 * 50000, 128), (False, 50000, 500)):
        outline = ModelOutline(network("vgg13_bn"), network("resnet18"), SIZES, augmented)
        work = attack_work(bench.attacks["knockoff"], "vgg13_bn", outline)
        assert work[Pass("answer", network("resnet18"), batch)] == asked
        assert work[Pass("train", network("vgg13_bn"), 128)] == 30 * 50000


def test_pgd_costs_more_the_more_images_it_makes_and_only_the_last_layer_costs_less(bench):
    assert flop(bench, "adversarial/1.0") > flop(bench, "adversarial/0.1") > flop(bench, "finetune/FTAL")
    assert flop(bench, "finetune/FTLL") < flop(bench, "finetune/FTAL") == flop(bench, "prune/0.5")
    outline = ModelOutline(network("resnet18"), network("resnet18"), SIZES, augmented=True)
    work = attack_work(bench.attacks["adversarial"], "0.5", outline)
    assert work[Pass("attack", network("resnet18"), AT_ONCE)] == 10 * 2500
    assert work[Pass("train", network("resnet18"), 64)] == 20 * 7500


def test_a_student_of_inceptionv3_is_slower_than_one_of_resnet18_and_named_after_it(bench):
    heavy, light = (effort(bench.models[f"distill/{name}"], SIZES) for name in ("inceptionv3", "resnet18"))
    assert heavy.flop > 10 * light.flop and (heavy.group, light.group) == ("inceptionv3", "resnet18")


def test_an_attack_and_a_method_that_say_nothing_count_by_what_they_are_given():
    @dataclass(frozen=True)
    class Mine:
        recipe: object
        students: ClassVar[bool] = False

    recipe = config.build(config.compose(["profile=paper"]).zoo.tuning)
    outline = ModelOutline(network("resnet18"), network("resnet18"), SIZES, augmented=True)
    assert attack_work(Mine(recipe), "", outline) == {Pass("train", network("resnet18"), 64): 20 * 5000}
    assert attack_work(Mine(None), "", outline) == {}
    setting = MethodOutline(network("resnet18"), (), (), None, SIZES, 100)
    assert method_work(object(), setting) == {Pass("attack", network("resnet18"), 100): 1000 * 100}


@pytest.mark.parametrize("name", config.options("method"))
def test_every_method_says_its_work(name):
    pair = (network("resnet18", 0.125), network("vgg13_bn", 0.125))
    gan = Adversaries(config.build(config.compose(["gan=sagan"]).gan), 10, (3, 32, 32))
    method = config.build(config.compose([f"method={name}", "profile=paper"]).method)
    outline = MethodOutline(pair[0], pair * 2, pair * 2, gan, SIZES, 100)
    work = method.work(outline)
    assert sum(images * one.flop for one, images in work.items()) > 0
    if hasattr(method, "epochs"):
        more = replace(method, epochs=2 * method.epochs).work(outline)
        assert sum(more.values()) > 1.5 * sum(work.values())


def test_naturalfinger_takes_every_latent_through_every_surrogate_each_epoch():
    method = config.build(config.compose(["method=naturalfinger", "profile=paper"]).method)
    gan = Adversaries(config.build(config.compose(["gan=sagan"]).gan), 10, (3, 32, 32))
    work = method.work(
        MethodOutline(network("resnet18"), (network("resnet18"),) * 8, (network("vgg9"),) * 8, gan, SIZES, 100)
    )
    assert (
        work[Pass("attack", network("resnet18"), 80)] == work[Pass("attack", network("vgg9"), 80)] == 8 * 1000 * 13 * 80
    )
    assert work[Pass("attack", gan, 80)] == 2 * 1000 * 13 * 80  # two steps an epoch


@pytest.mark.parametrize("word", ["method=random", "evasion=autoencoder", "method=naturalfinger"])
def test_all_that_a_run_makes_has_an_effort(word):
    bench = Bench(config.compose([word]))
    sizes = Sizes.of(bench.data)
    assert all(effort(spec, sizes).flop > 0 for spec in bench.plan())


@dataclass(frozen=True)
class Toy(Spec):
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    group: str
    flop: float


def eta():
    return Eta(lambda spec: Effort(spec.group, spec.flop))


def test_before_anything_is_made_no_time_is_left_to_tell():
    assert eta().left([Toy("a", 1.0)], [], 1) is None


def test_each_network_goes_by_its_own_speed_once_it_is_known():
    time = eta()
    time.learn(Toy("fast", 100.0), 10.0)
    assert time.seconds(Toy("slow", 100.0)) == 10.0  # unknown: as fast as all so far
    time.learn(Toy("slow", 100.0), 90.0)
    assert (time.seconds(Toy("fast", 50.0)), time.seconds(Toy("slow", 50.0))) == (5.0, 45.0)
    assert time.seconds(Toy("new", 50.0)) == 25.0


def test_workers_share_the_work_but_not_one_piece_of_it():
    time = eta()
    time.learn(Toy("a", 1.0), 1.0)
    assert time.left([Toy("a", 10.0), Toy("a", 20.0)], [], 1) == 30.0
    assert time.left([Toy("a", 10.0), Toy("a", 20.0)], [], 2) == 20.0
    assert time.left([Toy("a", 10.0)], [(Toy("a", 20.0), 15.0), (Toy("a", 2.0), 5.0)], 2) == 10.0
    assert time.left([], [], 2) == 0.0


def test_a_cost_that_cannot_be_told_stops_nothing():
    def refuse(spec):
        raise RuntimeError("no such kernel on the meta device")

    time = Eta(refuse)
    time.learn(Toy("a", 1.0), 1.0)
    assert time.left([Toy("a", 1.0)], [], 1) is None


def test_a_known_cost_is_taken_as_it_is():
    assert Pass("train", Other("mine", 7.0), 1).flop == 21.0
