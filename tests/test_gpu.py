"""What a device computes is what the CPU computes: on CUDA (pytest -m gpu), and here on the CPU and on a stand-in.

Each test compares with a second path on the CPU, so that it says something there too.
"""

import shutil

import pytest
import torch
from conftest import METHODS, KilledError, slow_but
from devices import CPU, GANS, RECIPE, block, made, opened, others, shop, small_net
from standin import CUDA, NO_GPU
from torch import nn
from torch.nn import functional as F

from fingerbench import checkpoint, config
from fingerbench.checkpoint import Checkpoint
from fingerbench.data.augment import Augment
from fingerbench.evaluate.specs import AccuracySpec, AgreementSpec, ResponseSpec, fingerprint_of
from fingerbench.gans import train
from fingerbench.nets import Normalise
from fingerbench.ops import matching_rate, predict
from fingerbench.seeds import fix_order, seeded
from fingerbench.transforms import GaussianBlur, shear
from fingerbench.workshop import peak_memory, pick_bfloat16, pick_device, revive
from fingerbench.zoo.train import Workbench, _Epoch, answers, fit, supervise

THEFTS = ("finetune/FTAL", "prune/0.5", "noise/9", "adversarial/0.5", "distill/resnet18", "knockoff/resnet18")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """What is made on the CPU, shared by the tests."""
    return tmp_path_factory.mktemp("store")


def test_a_model_trained_on_the_cpu_answers_alike(store, device):
    bench = opened(store, "method=random", "attack=source")
    spec = made(bench, bench.zoo.original(), CPU)
    x = bench.data.test.pixels()[:100]
    plain = spec.network(bench.data.shape)
    plain.load_state_dict(bench.store.load(spec).tensors)
    here = torch.cat([plain.double().eval()(image[None].double()) for image in x]).detach()
    there = predict(spec.load(shop(bench, device)), x.to(device))
    assert there.device.type == device.type and here.argmax(1).unique().numel() > 5
    assert torch.equal(there.cpu().argmax(1), here.argmax(1))
    torch.testing.assert_close(there.cpu().double(), here, rtol=1e-3, atol=1e-3)


def test_answers_are_float32_though_convolutions_may_round(device):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default; the fixture puts back what was
    with seeded(0):
        net, x = nn.Sequential(*block(3, 64), *block(64, 64)).eval(), torch.rand(8, 3, 32, 32)
    there = predict(net.to(device), x.to(device)).cpu()
    torch.testing.assert_close(there.double(), net.cpu().double()(x.double()).detach(), rtol=1e-4, atol=1e-6)


def plain_losses(images, augment):
    """Return the losses of the epochs that `fit` should meet, from a loop of its own on the CPU, five batches each."""
    model, generator = small_net().train(), torch.Generator().manual_seed(1)
    sgd = torch.optim.SGD(model.parameters(), RECIPE.lr, RECIPE.momentum, weight_decay=5e-4, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 50)
    losses = []
    for _ in range(RECIPE.epochs):
        total = 0.0
        for index in torch.randperm(160, generator=generator).tensor_split(5):
            loss = F.cross_entropy(model(augment(images.x[index].float() / 255, generator)), images.y[index])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            cosine.step()
            total += loss.item()
        losses.append(total / 5)
    return losses


def test_training_meets_the_same_losses(store, device):
    bench, augment = opened(store, "method=random", "attack=source"), Augment(pad=2, flip=True)
    images = type(bench.data.a)(bench.data.a.x[:160], bench.data.a.y[:160])
    bound = images.to(device)
    workbench = Workbench(device, False, augment, torch.Generator().manual_seed(1), bench.data.task)
    fit(small_net(), bound.x, lambda outputs, _x, index: F.cross_entropy(outputs, bound.y[index]), RECIPE, workbench)
    expected = plain_losses(images, augment)
    assert len(workbench.losses) == 10 and expected[-1] < expected[0] - 0.5
    torch.testing.assert_close(workbench.losses[:1], expected[:1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(workbench.losses, expected, rtol=0.05, atol=0.02)  # rounding errors grow step by step


@pytest.mark.parametrize("name", ["cpu", CUDA])
def test_a_killed_training_goes_on_on_either_device(name, tmp_path, monkeypatch):
    bench, augment = opened(tmp_path, "method=random", "attack=source"), Augment(pad=2, flip=True)
    images = type(bench.data.a)(bench.data.a.x[:160], bench.data.a.y[:160])
    expected = plain_losses(images, augment)
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)

    def losses(device, file):
        generator = torch.Generator().manual_seed(1)
        workbench = Workbench(device, False, augment, generator, bench.data.task, checkpoint=Checkpoint(file))
        supervise(small_net(), images.to(device), RECIPE, workbench)
        return workbench.losses

    def die(epoch):
        if len(epoch.workbench.losses) == 3:
            raise KilledError
        return close(epoch)

    close, draw, steps, device = _Epoch.close, _Epoch.next, [], torch.device(name)
    for number, (first, second) in enumerate([(device, device), (device, CPU), (CPU, device)]):
        file = tmp_path / f"{number}.pt"
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(_Epoch, "close", die)
            losses(first, file)
        assert torch.load(file, weights_only=True)["step"] == 19  # of 50
        with monkeypatch.context() as patch:
            patch.setattr(_Epoch, "next", lambda epoch: steps.append(1) or draw(epoch))
            torch.testing.assert_close(losses(second, file), expected, rtol=0.05, atol=0.02)
        assert len(steps) == 31
        steps.clear()


def test_augmentation_crops_alike(device):
    pad, n, side = 4, 50, 16
    x = torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    there = Augment(pad, flip=True)(x.to(device), torch.Generator().manual_seed(1)).cpu()
    generator = torch.Generator().manual_seed(1)
    corner = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    for i, image in enumerate(F.pad(x, (pad,) * 4)):
        top, left = corner[:, i].tolist()
        crop = image[:, top : top + side, left : left + side]
        assert torch.equal(there[i], crop.flip(2) if mirrored[i] else crop)


@pytest.mark.parametrize("theft", slow_but(("knockoff/resnet18",), THEFTS))
@others
def test_an_attack_makes_the_same_model(store, device, theft):
    bench = opened(store, "method=random", f"attack={theft.partition('/')[0]}")
    spec = made(bench, bench.models[theft], CPU)
    tensors, facts = spec.make(shop(bench, device))
    assert facts["device"] == device.type and all(t.device.type == device.type for t in tensors.values())
    copy = revive(spec.network(bench.data.shape), {k: t.cpu() for k, t in tensors.items()})
    x = bench.data.test.pixels()
    answers, expected = predict(copy, x).argmax(1), predict(spec.load(shop(bench, CPU)), x).argmax(1)
    born = bench.attacks[theft.partition("/")[0]].students  # from random weights
    assert matching_rate(expected, answers) > (0.6 if born else 0.8)  # rounding errors grow in training
    assert facts["accuracy"] == pytest.approx(matching_rate(bench.data.test.y, answers), abs=0.02)


def test_a_teacher_says_on_a_device_what_it_says_on_the_cpu(store, device):
    bench = opened(store, "method=random", "attack=source")
    victim = made(bench, bench.zoo.original(), CPU).load(shop(bench, device))
    x = bench.data.test.pixels()[:100]
    task = Workbench(device, True, Augment(2, True), torch.Generator(), bench.data.task)  # as students in bfloat16
    there = answers(victim, bench.data.test.x[:100].to(device), task)(x.to(device), torch.arange(100))
    expected = predict(victim.to(CPU), x)
    assert there.dtype == torch.float32 and there.device.type == device.type
    assert matching_rate(there.cpu().argmax(1), expected.argmax(1)) > 0.95
    torch.testing.assert_close(there.cpu(), expected, rtol=0.05, atol=0.2)


def score(bench, device):
    """Return the score of the source by a stored fingerprint, from answers that it gives on a device."""
    response = ResponseSpec(bench.fingerprint_spec, bench.zoo.original(), bench.method.access, None)
    answers = response.make(shop(bench, device))[0]["answers"].cpu()
    fingerprint = fingerprint_of(bench.store.load(bench.fingerprint_spec))
    return bench.method.similarity(fingerprint, answers[0])


@pytest.mark.parametrize("method", slow_but(("ipguard", "akh", "random"), METHODS))
@others
def test_a_fingerprint_made_on_a_device_is_answered_on_the_cpu(store, device, method, tmp_path):
    longer = {"naturalfinger": "method.epochs=60", "metafinger": "method.max_restarts=4"}  # or no query may pass
    words = [f"method={method}", "attack=source", *([longer[method]] if method in longer else [])]
    for needed in opened(store, *words).fingerprint_spec.needs():
        made(opened(store, *words), needed, CPU)
    shutil.copytree(store, tmp_path / "store")
    bench = opened(tmp_path / "store", *words)  # a fingerprint made elsewhere has the same key
    made(bench, bench.fingerprint_spec, device)
    queries = bench.store.facts(bench.fingerprint_spec)["queries"]
    assert queries > 0 and score(bench, CPU) == pytest.approx(score(bench, device), abs=1.01 / queries)  # one answer
    if method in ("ipguard", "akh", "random", "freqgan"):  # whose labels are the source's own
        assert score(bench, CPU) >= 0.95


def test_cudnn_makes_no_trials_for_what_is_asked_once(store, monkeypatch):
    bench = opened(store, "method=random", "attack=[source,finetune]", "evasion=jpeg")
    spec = made(bench, bench.models["finetune/FTAL"], CPU)
    evasion, fingerprint = made(bench, bench.evasion_spec, CPU), made(bench, bench.fingerprint_spec, CPU)
    trials = []

    def noted(model, *images):
        trials.append(torch.backends.cudnn.benchmark)
        return predict(model, *images)

    monkeypatch.setattr("fingerbench.evaluate.specs.predict", noted)
    monkeypatch.setattr("fingerbench.zoo.model.predict", noted)
    fix_order(False)
    asked = [
        ResponseSpec(fingerprint, spec, bench.method.access, None),
        AccuracySpec(spec, evasion),
        AgreementSpec(spec, bench.zoo.original()),
        spec,  # is measured once it is made
    ]
    for one in asked:
        before = len(trials)
        one.make(shop(bench, CPU))
        assert len(trials) > before and torch.backends.cudnn.benchmark
    assert not any(trials)


@pytest.mark.parametrize("name", config.options("evasion"))
@others
def test_an_evasion_changes_queries_alike(store, device, name):
    short = ["evasion.epochs=2"] if name == "autoencoder" else []
    bench = opened(store, "method=random", "attack=source", f"evasion={name}", *short)
    x, evasion = bench.data.test.pixels()[:10], bench.evasion_spec
    if evasion is None:
        return
    bench.store.save(evasion, *evasion.make(shop(bench, CPU)))
    seen = [evasion.draw(x.to(d), shop(bench, d)).cpu() for d in (CPU, device)]
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
    outputs = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    answers = [evasion.evasion.answers(outputs.to(d)).cpu() for d in (CPU, device)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    weights, _ = evasion.make(shop(bench, device))
    assert all(tensor.device.type == device.type and bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.parametrize("name", slow_but(("sagan",), GANS))
@others
def test_a_gan_takes_the_same_steps(store, device, name, monkeypatch):
    monkeypatch.setattr(train, "SETTLE_BATCHES", 2)
    bench = opened(store, "method=naturalfinger", "attack=source", f"gan={name}", "gan.steps=3")
    design = bench.fingerprint_spec.gan.design
    z = torch.randn(8, design.latent, generator=torch.Generator().manual_seed(2))

    def images(place):
        gan = design.train(bench.data.a.to(place), 10, torch.Generator().manual_seed(1), place)
        with torch.no_grad():
            return gan.generator(z[:, : gan.latent].to(place), torch.arange(8, device=place)).cpu()

    here, there = images(CPU), images(device)
    assert here.std() > 0
    torch.testing.assert_close(there, here, rtol=0.05, atol=0.05)


def test_what_a_network_does_not_store_goes_where_its_weights_are(device):
    model = nn.Sequential(Normalise([0.5] * 3, [0.25] * 3), nn.Flatten(), nn.Linear(12, 2))
    tensors = {name: tensor.to(device) for name, tensor in model.state_dict().items()}
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        hollow = nn.Sequential(Normalise([0.5] * 3, [0.25] * 3), nn.Flatten(), nn.Linear(12, 2))
    torch.testing.assert_close(revive(hollow, tensors)(x.to(device)).cpu(), model(x).detach())


@pytest.mark.parametrize("name", ["cpu", CUDA])
def test_peak_memory_sees_what_a_block_takes(name):
    device = pick_device(name)
    torch.cuda.empty_cache()  # else it takes what PyTorch holds already
    with peak_memory(device) as peak:
        before = peak()
        block = torch.ones(256, 2**20, dtype=torch.uint8, device=device)
        # Less than 256, since the system may reclaim cold pages of this process meanwhile.
        assert peak() >= before + 60 and int(block.sum()) == 256 * 2**20


@pytest.mark.gpu
@NO_GPU
def test_auto_is_the_gpu_and_its_bfloat16():
    device = pick_device("auto")
    assert device.type == "cuda"
    assert pick_bfloat16("auto", device, "mobilenetv2") == (torch.cuda.get_device_capability()[0] >= 8)
    assert pick_bfloat16("bfloat16", device, "resnet18") and not pick_bfloat16("float32", device, "resnet18")


@others
def test_transforms_have_repeatable_gradients_there(device):
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    fix_order(True)
    try:
        results = []
        for place in (CPU, device, device):
            pixels = x.to(place).requires_grad_(True)
            moved = shear(pixels, 0.1, -0.2) * 2 + GaussianBlur(0.8)(pixels, torch.Generator())
            results.append([moved.detach().cpu(), torch.autograd.grad(moved.square().sum(), pixels)[0].cpu()])
    finally:
        fix_order(False)
    for here, there, again in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
        assert torch.equal(there, again)
