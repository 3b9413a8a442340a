"""The 15 architectures and the detector: exact sizes, shapes at other widths, and the conventions the zoo builds on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fingerbench.errors import UserError
from fingerbench.nets import ARCHITECTURES, DETECTORS, Normalise, Subsampled, final_layer, network
from fingerbench.nets.blocks import Residual

PARAMETERS = {
    "densenet121": 1_000_618,
    "efficientnet": 3_351_478,
    "googlenet": 5_490_986,
    "inceptionv3": 21_638_954,
    "mobilenetv2": 2_236_682,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "seresnet18": 11_267_842,
    "shufflenetv2": 1_268_646,
    "squeezenet": 734_986,
    "vgg13_bn": 28_334_410,
    "vgg16_bn": 33_646_666,
    "vgg19_bn": 38_958_922,
    "xception": 20_829_578,
}
# Multiply-accumulates of one 32x32 image, in millions: strides, pools and kernels that parameters do not show.
MMACS = [
    125.3,
    139.0,
    1337.1,
    3460.5,
    88.0,
    140.2,
    291.2,
    325.8,
    555.5,
    43.6,
    52.5,
    247.2,
    332.1,
    417.0,
    1129.7,
]

every_architecture = pytest.mark.parametrize("name", (*ARCHITECTURES, *DETECTORS))


def test_the_order_is_the_papers():
    assert tuple(PARAMETERS) == ARCHITECTURES


@pytest.mark.parametrize(("name", "mmacs"), list(zip(ARCHITECTURES, MMACS, strict=True)))
def test_full_width_is_exactly_the_papers_network(name, mmacs):
    with torch.device("meta"):
        model, image = network(name).eval(), torch.zeros(1, 3, 32, 32)
    macs = 0

    def count(layer, _, output):
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    assert model(image).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert macs / 1e6 == pytest.approx(mmacs, abs=0.06)


def test_squeezenet_bypasses_fires_3_5_and_7():
    # What adds no weight and multiplies nothing is in neither count.
    _stem, *fires = (
        layer for layer in network("squeezenet", width=0.125).features if not isinstance(layer, nn.MaxPool2d)
    )
    assert len(fires) == 8
    assert [number for number, layer in enumerate(fires, start=2) if isinstance(layer, Residual)] == [3, 5, 7]


def test_the_detector_has_the_papers_size_and_pools_a_4x4_map():
    model, shapes = network("vgg9").eval(), []
    model.features.register_forward_hook(lambda _module, _x, output: shapes.append(tuple(output.shape)))
    assert sum(p.numel() for p in model.parameters()) == 84_746
    assert [tuple(model(torch.rand(2, 3, size, size)).shape) for size in (32, 16)] == [(2, 10)] * 2
    assert shapes == [(2, 128, 4, 4), (2, 128, 2, 2)]
    weighty = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(weighty) == 9 and final_layer(model) is weighty[-1]


@every_architecture
@pytest.mark.parametrize("size", [16, 20, 32, 40, 64])  # 20, 40: MetaFinger pads its images
def test_narrow_networks_take_other_sizes_in_both_modes(name, size):
    model, x = network(name, classes=7, width=1 / 8), torch.rand(2, 3, size, size)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        logits = model.eval()(x)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@every_architecture
def test_width_scales_the_whole_network(name):
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in network(name, width=w).parameters()) for w in (1 / 8, 1 / 4, 1 / 2, 1)]
    assert sizes == sorted(sizes)
    assert sizes[2] < 0.5 * sizes[3]
    assert sizes[0] < 0.15 * sizes[3]


@every_architecture
def test_state_dict_round_trip_through_the_meta_device(name):
    def normalised():
        return nn.Sequential(Normalise((0.5, 0.4, 0.3), (0.2, 0.2, 0.3)), network(name, width=1 / 8)).eval()

    model, x = normalised(), torch.rand(2, 3, 16, 16)
    with torch.device("meta"):
        copy = normalised()
    copy.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(copy(x), model(x))


@every_architecture
def test_final_layer_alone_decides_the_logits(name):
    model, x = network(name, classes=7, width=1 / 8).eval(), torch.rand(2, 3, 16, 16)
    layer = final_layer(model)
    nn.init.zeros_(layer.weight)
    bias = torch.arange(7.0)
    layer.bias.data.copy_(bias)
    with torch.no_grad():
        torch.testing.assert_close(model(x), bias.expand(2, 7))
    layer.reset_parameters()
    assert layer.weight.abs().sum() > 0


def test_final_layer_is_the_same_behind_the_normalisation():
    model = nn.Sequential(Normalise([0.5] * 3, [0.2] * 3), network("resnet18", width=1 / 8))
    assert final_layer(model) is final_layer(model[1])


def test_a_model_without_weights_has_no_final_layer():
    with pytest.raises(UserError, match="no linear or convolution layer"):
        final_layer(nn.ReLU())


def test_normalisation_inside_equals_outside():
    mean, std = (0.49, 0.48, 0.45), (0.20, 0.21, 0.22)
    x = torch.rand(2, 3, 16, 16)
    outside = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(Normalise(mean, std)(x), outside)


def test_unknown_name_names_its_neighbours():
    with pytest.raises(UserError, match=r"unknown architecture 'resnet19'; did you mean .*'resnet18'.*known: densenet"):
        network("resnet19")


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_width_must_be_positive(width):
    with pytest.raises(UserError, match="width"):
        network("resnet18", width=width)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_convolution_is_left_that_writes_past_its_memory(name):
    convs = [part for part in network(name, 10, 1 / 16).modules() if isinstance(part, nn.Conv2d)]
    strided = [conv for conv in convs if conv.kernel_size == (1, 1) != conv.stride]
    assert not any(type(conv) is nn.Conv2d and conv.in_channels < 8 for conv in strided)


def test_what_is_left_out_first_would_not_have_been_read():
    conv = nn.Conv2d(4, 6, 1, stride=2)
    other = copy.deepcopy(conv)
    other.__class__ = Subsampled
    x = torch.rand(3, 4, 9, 8)
    torch.testing.assert_close(other(x), conv(x))
