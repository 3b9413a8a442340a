"""The zoo: its rows, and that each attack does what its name says."""

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import same_weights
from torch.nn import functional as F

import fingerbench as fb
from fingerbench import config
from fingerbench.data.augment import Augment
from fingerbench.errors import DivergedError, UserError
from fingerbench.nets import ARCHITECTURES, REVISIONS, final_layer, network
from fingerbench.ops import predict
from fingerbench.records import Images
from fingerbench.task import Classification
from fingerbench.zoo import adversarial
from fingerbench.zoo.adversarial import Adversarial
from fingerbench.zoo.distill import Distill
from fingerbench.zoo.finetune import Finetune
from fingerbench.zoo.knockoff import Knockoff
from fingerbench.zoo.noise import Noise, NoisedCopy, disturb
from fingerbench.zoo.prune import Prune, weight_layers
from fingerbench.zoo.surrogates import Augmented, Pair, Shared, checked, refuse_overlap
from fingerbench.zoo.table import Zoo, suspects
from fingerbench.zoo.train import Recipe, Scene, Scratch, Workbench, fit, supervise

RECIPE = Recipe(epochs=2, batch=16, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine")
CLASSES = 3
TASK = Classification(CLASSES)


def toy_images(n, seed):
    """Images whose brightest corner tells the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = torch.randint(0, 120, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    for label, (top, left) in enumerate([(0, 0), (0, 8), (8, 0)]):
        x[y == label, :, top : top + 8, left : left + 8] += 100
    return Images(x, y)


def small():
    return network("resnet18", CLASSES, 0.125)


def scene(victim, *, half=None, finetune=None, seed=0):
    torch.manual_seed(seed)
    bench = Workbench(torch.device("cpu"), False, Augment(pad=0, flip=False), torch.Generator().manual_seed(seed), TASK)
    images = toy_images(48, 1)
    return Scene(bench, small, copy.deepcopy(victim), half or images, finetune or images, toy_images(48, 2))


@pytest.fixture(scope="module")
def victim():
    with torch.random.fork_rng():
        return Scratch(RECIPE).make("resnet18", scene(None)).requires_grad_(True)


@pytest.fixture(scope="module")
def attacks():
    settings = config.compose(["profile=paper"])
    return {str(family): config.build(node) for family, node in settings.attack.items()}


def test_models_of_the_sources_half_are_independent_of_it():
    bench = fb.open("method=random", "attack=[source,scratch,same-half]", "zoo.architectures=[resnet18,vgg13_bn]")
    models, source = bench.models, bench.zoo.original()
    rows = {row.name: row for row in bench.suspects if row.family == "same-half"}
    assert list(rows) == ["same-half/resnet18", "same-half/vgg13_bn"]
    assert not any(row.pirated or row.parent or row.mirror_of for row in rows.values())
    assert {models[name].half for name in rows} == {"A"} == {source.half}
    assert models["same-half/resnet18"].seed != source.seed and models["scratch/vgg13_bn"].half == "B"


def test_a_name_that_means_another_network_now_is_another_model(monkeypatch):
    def keys():
        models = fb.open("method=random", "zoo.architectures=[resnet18,squeezenet]").models
        return {name: models[name].key for name in ("source", "scratch/squeezenet", "distill/resnet18")}

    before = keys()
    monkeypatch.setitem(REVISIONS, "squeezenet", REVISIONS["squeezenet"] + 1)
    assert {name for name, key in keys().items() if key != before[name]} == {"scratch/squeezenet"}


def test_pruning_leaves_no_gradient_to_follow_from_before_the_training(victim, monkeypatch):
    # A GPU could not replay its steps then.
    seen = []
    monkeypatch.setattr(
        "fingerbench.zoo.prune.supervise",
        lambda model, *_: seen.extend(layer.weight.grad_fn for layer in weight_layers(model)),
    )
    Prune(RECIPE, ("0.5",)).make("0.5", scene(victim))
    assert len(seen) > 10 and set(seen) == {None}


def test_the_zoo_has_the_154_suspects_of_the_paper(attacks):
    rows = suspects(attacks, "resnet18")
    assert len(rows) == len({row.name for row in rows}) == 154
    assert sum(row.pirated for row in rows) == 63
    thefts = {"source": 1, "finetune": 4, "prune": 9, "noise": 9, "adversarial": 10, "distill": 15, "knockoff": 15}
    for family, count in thefts.items():
        positives = [row for row in rows if row.family == family and row.pirated]
        mirrors = [row for row in rows if row.family == family and not row.pirated]
        assert len(positives) == len(mirrors) == count
        assert [row.mirror_of for row in mirrors] == [row.name for row in positives]
        assert [row.variant for row in mirrors] == [row.variant for row in positives]
    for family in ("scratch", "scratch-distill"):
        others = [row for row in rows if row.family == family]
        assert [row.variant for row in others] == [name for name in ARCHITECTURES if name != "resnet18"]
        assert not any(row.pirated or row.mirror_of for row in others)
    assert {row.architecture for row in rows if row.family == "scratch-distill"} == {"resnet18"}


def test_parents_halves_and_architectures(attacks):
    rows = {row.name: row for row in suspects(attacks, "resnet18")}
    assert all(row.half == ("A" if row.pirated else "B") for row in rows.values())
    assert rows["distill/vgg13_bn"].parent == "source" and rows["distill/vgg13_bn"].architecture == "vgg13_bn"
    assert rows["mirror/prune/0.9"].parent == "mirror/source" and rows["prune/0.9"].architecture == "resnet18"
    assert rows["scratch-distill/xception"].parent == "scratch/xception"
    assert all(row.parent in rows for row in rows.values() if row.parent)
    assert [row.variant for row in rows.values() if row.family == "finetune" and row.pirated] == [
        "FTLL",
        "FTAL",
        "RTLL",
        "RTAL",
    ]


def toy_zoo(seed=0):
    return Zoo("digest", 10, "resnet18", 1.0, Augment(pad=0, flip=False), "float32", seed, Scratch(RECIPE))


def test_every_suspect_is_a_model_of_its_own_and_its_parent_part_of_its_key(attacks):
    zoo = toy_zoo()
    specs = {row.name: zoo.spec(row, attacks) for row in suspects(attacks, "resnet18")}
    assert len({spec.key for spec in specs.values()}) == len({spec.seed for spec in specs.values()}) == 154
    for row in suspects(attacks, "resnet18"):
        parent = specs[row.name].parent
        assert (parent.key if parent else None) == (specs[row.parent].key if row.parent else None)
    assert toy_zoo(seed=1).original().key != zoo.original().key == specs["source"].key


def test_the_surrogates_are_8_and_8_and_none_is_a_suspect(attacks):
    zoo = toy_zoo()
    surrogates: Shared = config.build(config.compose().surrogates)
    positives, negatives = surrogates.specs(zoo)
    assert len({s.key for s in positives}) == len({s.key for s in negatives}) == 8
    assert positives[0].key == zoo.original().key
    assert {s.half for s in positives} == {"A"} and {s.half for s in negatives} == {"B"}
    specs = [zoo.spec(row, attacks) for row in suspects(attacks, "resnet18")]
    refuse_overlap([*positives, *negatives], specs, zoo.original())
    with pytest.raises(UserError, match="disjoint"):
        refuse_overlap([specs[5]], specs, zoo.original())


def test_independent_surrogates_may_be_of_both_halves_in_turn_and_their_students_too():
    zoo = toy_zoo()
    of_b, of_both = (
        config.build(config.compose([f"surrogates.halves={halves}"]).surrogates).specs(zoo)
        for halves in ("[B]", "[B,A]")
    )
    assert of_both[0] == of_b[0]
    first, *students = of_both[1][:3]
    second, student, *others = of_both[1][3:]
    assert [spec.half for spec in of_both[1]] == ["B", "B", "B", "A", "A", "B", "A", "B"]
    assert [spec.parent for spec in (*students, student, *others)] == [first, first, second, None, None, None]
    known = {spec.name: spec.key for spec in of_b[1]}
    assert all((known[spec.name] == spec.key) == (spec.half == "B") for spec in of_both[1])
    augmented = config.build(config.compose(["surrogates=augmented", "surrogates.halves=[A]"]).surrogates)
    assert {spec.half for spec in augmented.specs(zoo)[1]} == {"A"}
    for halves in ("[]", "[C]", "null", "A", "[A,B,A,B,A,B,A]"):
        with pytest.raises(UserError, match=r"surrogates\.halves: expected a list of A and B"):
            config.build(config.compose([f"surrogates.halves={halves}"]).surrogates)


def test_a_plan_that_is_none_is_refused():
    zoo = toy_zoo()
    source, stranger = zoo.original(), config.build(config.compose().surrogates).specs(zoo).negatives[0]
    assert checked(([source], (stranger,)), source) == Pair((source,), (stranger,))
    for made, told in (
        (None, "`specs` to return a Pair"),
        (([source], [stranger, "resnet18"]), "`specs` to return a Pair"),
        (((source,), ("resnet18",)), "`specs` to return a Pair"),
        (((stranger,), (source,)), "the source as the first positive; got 'surrogate/negative"),
        (((), (stranger,)), "the source as the first positive; got None"),
        (((source,), (source,)), r"no model more than once; got \['source'\]"),
    ):
        with pytest.raises(UserError, match=f"surrogates: expected {told}"):
            checked(made, source)


@pytest.mark.parametrize("words", [["profile=paper"], ["profile=demo"], ["profile=paper", "surrogates=augmented"]])
def test_the_last_third_of_the_surrogates_is_of_every_kind_and_of_other_lineages(words):
    positives, negatives = config.build(config.compose(words).surrogates).specs(toy_zoo())
    noised = "surrogates=augmented" in words
    kinds = [int(spec.variant) > 3 if noised else spec.architecture.startswith("resnet") for spec in positives[1:]]
    assert {*kinds[:4]} == {*kinds[4:]} == {True, False}
    lineages = [(spec.parent or spec).name for spec in negatives]
    trained = round(2 / 3 * len(negatives))
    assert not {*lineages[:trained]} & {*lineages[trained:]}


def test_augmented_surrogates_are_copies_of_few_models_that_follow_their_model(attacks):
    zoo = toy_zoo()
    plan: Augmented = config.build(config.compose(["surrogates=augmented", "profile=paper"]).surrogates)
    positives, negatives = plan.specs(zoo)
    assert positives[0].key == zoo.original().key
    assert {s.parent.key for s in positives[1:]} == {positives[0].key} and {s.half for s in positives} == {"A"}
    assert len(positives) == 8 and len(negatives) == 6 * (1 + 5)
    assert len({s.key for s in [*positives, *negatives]}) == len({s.seed for s in [*positives, *negatives]}) == 44
    for first in range(0, 36, 6):
        base, *copies = negatives[first : first + 6]
        assert base.parent is None and base.half == "B"
        assert {(s.parent.key, s.architecture, s.half) for s in copies} == {(base.key, base.architecture, "B")}
    specs = [zoo.spec(row, attacks) for row in suspects(attacks, "resnet18")]
    refuse_overlap([*positives, *negatives], specs, zoo.original())


def test_a_profile_shrinks_only_the_selected_surrogates():
    shared, augmented = (config.compose([f"surrogates={name}"]).surrogates for name in ("shared", "augmented"))
    assert "inceptionv3" not in shared.positives and len(shared.positives) == 7
    assert "copies" not in shared and "distilled" not in augmented
    assert sorted(augmented.positives) == ["1", "2", "3", "4", "5", "6", "7"] and len(augmented.copies) == 2


def test_a_copy_is_fine_tuned_on_the_half_that_its_model_was_trained_on(victim):
    ours, theirs = toy_images(48, 1), toy_images(48, 7)
    one, two = (NoisedCopy(RECIPE).make("2", scene(victim, half=ours, finetune=x)) for x in (ours, theirs))
    as_a_thief = Noise(RECIPE).make("2", scene(victim, half=theirs, finetune=ours))
    assert same_weights(one, two) and same_weights(one, as_a_thief)
    stranger = Noise(RECIPE).make("2", scene(victim, half=ours, finetune=theirs))
    assert not torch.equal(final_layer(one).weight, final_layer(stranger).weight)


@pytest.mark.parametrize("mode", ["FTLL", "RTLL"])
def test_last_layer_modes_leave_everything_else_as_it_is(victim, mode):
    before = {k: v.clone() for k, v in victim.state_dict().items()}
    after = Finetune(RECIPE).make(mode, scene(victim)).state_dict()
    last = {k for k, v in final_layer(victim).state_dict(prefix="").items()}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert len(changed) == len(last) == 2
    assert all(before[k].shape[0] == CLASSES for k in changed)


@pytest.mark.parametrize("mode", ["FTAL", "RTAL"])
def test_all_layer_modes_change_every_weight(victim, mode):
    before = dict(victim.named_parameters())
    after = dict(Finetune(RECIPE).make(mode, scene(victim)).named_parameters())
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_mode_is_named(victim):
    with pytest.raises(UserError, match="did you mean 'FTLL'"):
        Finetune(RECIPE).make("FTL", scene(victim))


@pytest.mark.parametrize("rate", ["0.1", "0.5", "0.9"])
def test_pruned_weights_are_zero_at_the_stated_rate_after_fine_tuning(victim, rate):
    pruned = Prune(RECIPE, (rate,)).make(rate, scene(victim))
    for layer, original in zip(weight_layers(pruned), weight_layers(victim), strict=True):
        zeros = layer.weight == 0
        assert zeros.sum().item() == round(float(rate) * layer.weight.numel())
        assert original.weight[zeros].abs().max() <= original.weight[~zeros].abs().min()
    assert pruned.state_dict().keys() == victim.state_dict().keys()


def test_noise_has_the_standard_deviation_of_its_layer_over_a(victim):
    noised = copy.deepcopy(victim)
    disturb(noised, 2.0, torch.Generator().manual_seed(0))
    layers = list(zip(weight_layers(noised), weight_layers(victim), strict=True))
    for layer, original in layers:
        noise = layer.weight - original.weight
        if noise.numel() > 1000:
            assert noise.std().item() == pytest.approx(original.weight.std().item() / 2, rel=0.1)
    weights = {id(layer.weight) for layer, _ in layers}
    others = [(n, p) for n, p in noised.named_parameters() if id(p) not in weights]
    assert all(torch.equal(p, victim.get_parameter(n)) for n, p in others) and others
    made = Noise(RECIPE, ("2",)).make("2", scene(victim))  # the same noise, by the same seed, and then fine-tuning
    assert not any(torch.equal(p, noised.get_parameter(n)) for n, p in made.named_parameters())
    for layer, (noisy, old) in zip(weight_layers(made), layers, strict=True):
        assert (layer.weight - noisy.weight).norm() < (layer.weight - old.weight).norm()


def test_pgd_moves_an_image_the_same_whatever_is_moved_with_it(victim, monkeypatch):
    x, attack = toy_images(20, 5).pixels(), Adversarial(RECIPE, eps=0.1, step=0.025, steps=3, variants=("0.5",))
    y = toy_images(20, 5).y

    def moved():
        return attack.pgd(copy.deepcopy(victim), x, y, torch.Generator().manual_seed(0))

    whole = moved()
    monkeypatch.setattr(adversarial, "AT_ONCE", 7)
    # The sign of a gradient near zero may turn with the order of a sum.
    assert ((moved() - whole).abs() > 1e-6).float().mean() < 0.01


def test_pgd_stays_within_its_bound_and_raises_the_loss(victim):
    images = toy_images(30, 3)
    attack = Adversarial(RECIPE, eps=0.1, step=0.025, steps=10, variants=("0.5",))
    x = images.pixels()
    moved = attack.pgd(copy.deepcopy(victim), x, images.y, torch.Generator().manual_seed(0))
    assert (moved - x).abs().max() <= 0.1 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    before, after = (F.cross_entropy(predict(victim, z), images.y) for z in (x, moved))
    assert after > before + 0.1


@pytest.mark.parametrize("floats", [False, True])
def test_adversarial_training_adds_the_share_it_names(victim, monkeypatch, floats):
    seen = []
    monkeypatch.setattr("fingerbench.zoo.adversarial.supervise", lambda model, images, *_: seen.append(images) or model)
    images = toy_images(48, 1)
    s = scene(victim, finetune=Images(images.pixels(), images.y) if floats else images)
    Adversarial(RECIPE, eps=0.1, step=0.025, steps=2, variants=("0.5",)).make("0.5", s)
    assert len(seen[0]) == 48 + 24
    assert torch.equal(seen[0].x[:48], s.finetune.x) and not torch.equal(seen[0].x[48:], s.finetune.x[:24])
    added = seen[0].pixels()[48:]
    assert added.max() <= 1 and (added[:, None] - images.pixels()).abs().amax((2, 3, 4)).amin(1).max() < 0.11


def test_distillation_is_hintons_loss():
    student, teacher = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[0.2, 2.0, -1.0]])
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    assert TASK.imitation(student, teacher, 4.0).item() == pytest.approx(
        16 * (p * (p / q).log()).sum().item(), rel=1e-5
    )
    assert TASK.imitation(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("attack", [Distill(RECIPE, 4.0), Knockoff(RECIPE)], ids=["distill", "knockoff"])
def test_students_never_see_a_label(victim, attack):
    images = toy_images(48, 1)
    shuffled = Images(images.x, torch.zeros_like(images.y))
    one = attack.make("resnet18", scene(victim, half=images))
    two = attack.make("resnet18", scene(victim, half=shuffled))
    assert same_weights(one, two)


def test_training_learns_and_is_repeatable():
    recipe = Recipe(epochs=12, batch=16, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="onecycle")
    one = Scratch(recipe).make("resnet18", scene(None))
    two = Scratch(recipe).make("resnet18", scene(None))
    test = toy_images(60, 9)
    assert torch.equal(predict(one, test.pixels()), predict(two, test.pixels()))
    assert (predict(one, test.pixels()).argmax(1) == test.y).float().mean() > 0.8


def test_a_loss_that_is_not_finite_stops_the_training(victim):
    s = scene(victim)
    with pytest.raises(DivergedError, match="epoch 1"):
        fit(s.victim, s.half.x, lambda logits, _x, _i: logits.sum() * float("nan"), RECIPE, s.workbench)


@dataclass(frozen=True)
class Frail:
    """Its loss is finite at a tenth of the rate alone, or never."""

    ever: bool
    students: ClassVar[bool] = True

    def make(self, variant, s):
        sound = self.ever and s.workbench.caution < 1
        return fit(
            s.network(), s.half.x, lambda o, _x, _i: o.mean() * (1.0 if sound else math.nan), RECIPE, s.workbench
        )


@pytest.fixture
def frail(tmp_path):
    bench = fb.open("data=digits", f"store={tmp_path}", "precision=bfloat16")
    spec = replace(bench.zoo.original(), name="frail", precision="bfloat16")
    return bench, lambda ever: replace(spec, attack=Frail(ever))


def test_a_training_that_diverges_is_begun_once_more_and_says_so(frail):
    bench, spec = frail
    _, facts = spec(True).make(bench.workshop)
    assert facts["retried"] == "loss nan in epoch 1 of 2; begun once more in float32, learning rates times 0.1"
    assert facts["autocast"] is False and len(facts["losses"]) == 2
    with pytest.raises(DivergedError, match=r"frail diverged: loss nan .* times 0.1: loss nan .* lower the lr"):
        spec(False).make(bench.workshop)


@dataclass(frozen=True)
class Careless:
    """Makes another network than the one asked for, or none."""

    network: bool
    students: ClassVar[bool] = True

    def make(self, variant, s):
        return torch.nn.Linear(2, 10) if self.network else None


@pytest.mark.parametrize(
    ("network", "got"),
    [
        (False, "a network of resnet18; got None"),
        (True, "a network of resnet18, with its weights' names and shapes; got 'it lacks "),
    ],
    ids=["none", "another"],
)
def test_what_an_attack_makes_is_refused_where_it_could_not_be_loaded(frail, network, got):
    bench, spec = frail
    with pytest.raises(UserError, match=rf"frail: Careless\.make: expected {got}") as caught:
        replace(spec(True), attack=Careless(network)).make(bench.workshop)
    assert "\n" not in str(caught.value)


def test_an_unknown_schedule_is_named(victim):
    s = scene(victim)
    recipe = Recipe(epochs=1, batch=16, lr=0.1, momentum=0.9, weight_decay=0.0, schedule="cosin")
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        supervise(s.victim, s.half, recipe, s.workbench)
