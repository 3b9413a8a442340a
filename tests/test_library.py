"""Networks of timm and torchvision: fitted to small images, trained, stored, revived, fine-tuned, refused."""

import copy

import pytest
import torch
from conftest import finish, run, start
from torch import nn

import fingerbench as fb
from fingerbench import config
from fingerbench.data.augment import Augment
from fingerbench.errors import UserError
from fingerbench.nets import blank, final_layer, library, network
from fingerbench.ops import predict
from fingerbench.records import Dataset, Images
from fingerbench.store import Store
from fingerbench.task import Classification
from fingerbench.workshop import Workshop
from fingerbench.zoo.finetune import Finetune
from fingerbench.zoo.prune import Prune, weight_layers
from fingerbench.zoo.table import Zoo
from fingerbench.zoo.train import Recipe, Scratch, Workbench

CONVNET, VIT, RELATIVE = "timm:mobilenetv3_small_050", "timm:test_vit", "timm:swin_tiny_patch4_window7_224"
RECIPE = Recipe(epochs=1, batch=8, lr=0.01, momentum=0.9, weight_decay=0.0, schedule="cosine")


def convolutions(model):
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)]


def images(n, size):
    generator = torch.Generator().manual_seed(n)
    return Images(
        torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8), torch.arange(n) % 4
    )


def workshop(folder, size=16):
    parts = [images(n, size) for n in (16, 17, 18, 19)]
    return Workshop(Store(folder), Dataset("toy", Classification(4), *parts, None), torch.device("cpu"))


def zoo(width=0.125):
    return Zoo("digest", 4, CONVNET, width, Augment(0, False), "float32", 0, Scratch(RECIPE))


def make(spec, shop):
    tensors, facts = spec.make(shop)
    shop.store.save(spec, tensors, facts)
    return tensors


@pytest.mark.parametrize("size", [16, 20, 32])
@pytest.mark.parametrize("name", [CONVNET, VIT, "torchvision:resnet18", "torchvision:googlenet"])
def test_networks_take_small_images_and_others_in_both_modes(name, size):
    model = network(name, classes=7, shape=(3, size, size))
    model(torch.rand(2, 3, size, size)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    for other in (size, size + 8):  # queries are resized and padded
        with torch.no_grad():
            assert model.eval()(torch.rand(3, 3, other, other)).shape == (3, 7)


def test_a_stem_keeps_the_size_of_a_small_image_alone():
    shapes = {}
    for size in (32, 63, 64):
        model = network("torchvision:resnet18", shape=(3, size, size))
        model.layer1.register_forward_hook(lambda _m, _x, y, size=size: shapes.update({size: y.shape[-1]}))
        model.eval()(torch.rand(1, 3, size, size))
    assert shapes == {32: 32, 63: 63, 64: 16}
    assert convolutions(network(CONVNET, shape=(3, 32, 32)))[0].stride == (1, 1)


@pytest.mark.parametrize(
    ("layers", "stride", "pools"),
    [
        ([nn.Conv2d(3, 4, 7, 2), nn.MaxPool2d(2), nn.MaxPool2d(2)], 1, 1),
        ([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)], 1, 0),  # as in a VGG
        ([nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(3, 1), nn.Conv2d(4, 4, 3, 2), nn.MaxPool2d(2)], 1, 2),
    ],
)
def test_the_rule_of_the_stem(layers, stride, pools):
    model = library._with_small_stem(lambda: nn.Sequential(*layers), pool=False)
    assert convolutions(model)[0].stride == (stride, stride)
    assert sum(isinstance(part, nn.MaxPool2d) for part in model.modules()) == pools


@pytest.mark.parametrize(
    ("published", "size", "patch"),
    [
        (16, 16, 2),
        (16, 32, 4),
        (16, 20, 2),
        (32, 32, 8),
        (4, 32, 1),
        (14, 32, 2),
        (16, 96, 12),
        (16, 128, 16),
        (14, 224, 14),
    ],
)
def test_patches_shrink_with_the_image(published, size, patch):
    assert library._patch(published, (size, size)) == patch


def test_vits_of_both_libraries_cut_small_images_alike():
    ours = network("timm:vit_tiny_patch16_224", shape=(3, 32, 32))
    with blank("resnet18"):
        theirs = library._torchvision("vit_b_16", 10, size=(32, 32), patch=True)
    assert convolutions(ours)[0].kernel_size == theirs.conv_proj.kernel_size == (4, 4)
    assert ours.network.pos_embed.shape[1] == theirs.encoder.pos_embedding.shape[1] == 1 + 64


@pytest.mark.parametrize("name", [CONVNET, VIT, "torchvision:resnet18", "torchvision:squeezenet1_1"])
def test_the_final_layer_alone_decides_the_outputs(name):
    model = network(name, classes=7, shape=(3, 16, 16)).eval()
    layer = final_layer(model)
    nn.init.zeros_(layer.weight)
    layer.bias.data.copy_(torch.arange(7.0))
    with torch.no_grad():
        torch.testing.assert_close(model(torch.rand(2, 3, 16, 16)), torch.arange(7.0).expand(2, 7))
    layer.reset_parameters()


@pytest.mark.parametrize("name", [CONVNET, VIT, "torchvision:shufflenet_v2_x0_5"])
def test_a_stored_network_answers_as_before_and_its_last_layer_is_tuned_alone(name, tmp_path):
    shop = workshop(tmp_path)
    source, x = zoo().trained("source", name, "A"), shop.data.test.pixels()
    weights = make(source, shop)
    trained = network(name, 4, shape=shop.data.shape)
    trained.load_state_dict(weights)
    before, state = predict(trained.eval(), x), torch.random.get_rng_state()
    model = source.load(shop)
    assert torch.equal(torch.random.get_rng_state(), state), "loading draws no random numbers"
    torch.testing.assert_close(predict(model, x), before)
    tuned = make(zoo().derived("finetune/FTLL", name, source, Finetune(RECIPE), "FTLL"), shop)
    last = {id(p) for p in final_layer(model).parameters()}
    names = {key for key, p in model.named_parameters() if id(p) in last}
    assert {key for key in weights if not torch.equal(weights[key], tuned[key])} == names and len(names) == 2


def test_buffers_that_are_not_stored_come_back(tmp_path):
    shop = workshop(tmp_path)
    model = network(RELATIVE, 4, shape=shop.data.shape).eval()
    assert {key for key, _ in model.named_buffers()} - set(model.state_dict()), "a network without such buffers"
    spec = zoo().trained("source", RELATIVE, "A")
    shop.store.save(spec, model.state_dict(), {})
    x = shop.data.test.pixels()
    torch.testing.assert_close(predict(spec.load(shop), x), predict(model, x))


@pytest.mark.parametrize("name", [VIT, "attention"])
def test_attention_survives_pruning(name, tmp_path):
    shop = workshop(tmp_path)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            x = x.flatten(1)[:, :128].view(-1, 16, 8)
            return self.head(self.attention(x, x, x)[0].mean(1))

    scene = zoo().trained("source", VIT, "A")._scene
    victim = Attention() if name == "attention" else network(name, 4, shape=shop.data.shape)
    bench = Workbench(shop.device, False, Augment(0, False), torch.Generator().manual_seed(0), shop.data.task)
    pruned = Prune(RECIPE, ("0.5",)).make("0.5", scene(shop, bench, victim))
    assert all((layer.weight == 0).sum() == round(layer.weight.numel() / 2) for layer in weight_layers(pruned))
    assert pruned.state_dict().keys() == copy.deepcopy(victim).state_dict().keys()


def test_the_width_of_the_zoo_is_not_theirs():
    wide, narrow = (zoo(width).trained("source", CONVNET, "A") for width in (1.0, 0.125))
    assert wide.key == narrow.key and narrow.width == 1
    assert zoo(1.0).trained("source", "resnet18", "A").key != zoo(0.125).trained("source", "resnet18", "A").key
    with pytest.raises(UserError, match=r"expected width 1, as published; got 0.5"):
        network(CONVNET, width=0.5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("timm:vit_tiny_patch16_24", (3, 32, 32), "did you mean timm:vit_tiny_patch16_224 or .*list timm$"),
        ("torchvision:resnet81", (3, 32, 32), "did you mean torchvision:resnet18 or .*list torchvision$"),
        ("tim:resnet18", (3, 32, 32), "unknown architecture 'tim:resnet18'.* known: .*timm:NAME, torchvision:NAME"),
        (
            "torchvision:maxvit_t",
            (3, 32, 32),
            "cannot take images of 3x32x32 .*; choose larger images or another network",
        ),
        ("timm:levit_128s", (3, 32, 32), "expected one last layer that makes the 10 outputs"),
        ("timm:resnet18", (1, 1, 10), "expected 3 channels of 16x16 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        network(name, shape=shape)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_line_takes_them_wherever_an_architecture_is_named(tmp_path):
    words = ["zoo.source=timm:test_resnet", f"zoo.architectures=[{VIT},timm:test_resnet]", "zoo.training.epochs=1"]
    words += ["attack=[source,prune,distill]", "attack.prune.variants=['0.5']", "zoo.tuning.epochs=1", "queries=5"]
    words += ["method=random", "data.transfer=50", "jobs=1"]
    output = run(tmp_path / "store", tmp_path / "run", *words, tiny=False)
    assert f"built as published, whatever zoo.width is: timm:test_resnet, {VIT}" in output
    rows = {s.name: s for s in fb.open(*words).suspects}
    assert rows[f"distill/{VIT}"].architecture == VIT and rows["mirror/source"].architecture == "timm:test_resnet"
    (names,) = [config.compose(words).zoo.architectures]
    assert list(names) == [VIT, "timm:test_resnet"]
    refused = run(tmp_path / "store", tmp_path / "no", "zoo.source=timm:resnet81", *words[1:], code=2, tiny=False)
    assert "error: unknown timm network 'resnet81'; did you mean timm:resnet" in refused and "Traceback" not in refused


def test_the_networks_of_a_library_are_listed():
    assert "torchvision:vit_b_16" in finish(start(["-m", "fingerbench"], "list", "torchvision")).split()
