"""How fast networks train: images per second of the zoo's trainer, against the loop that papers use, in one run.

    python benchmarks/train_speed.py [--architectures resnet18 xception] [--width 0.125] [--out TABLE.md]

Ours is `fingerbench.zoo.train.fit` with CIFAR-10's augmentation, in float32 and in bfloat16 autocast; on a GPU also in
bfloat16 without replayed steps, and with torch.compile. The plain loop is DataLoader workers that crop, flip and
convert image by image, float32, contiguous format, SGD, cross-entropy and loss.item(). Images are random: speed does
not hang on what they show. The share of the peak is of a large matrix product on the same device and threads, in the
type that `precision=auto` picks. A training step counts as three forward passes (see fingerbench/cost.py).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import machine
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fingerbench import replay
from fingerbench.cost import Network
from fingerbench.data.augment import Augment
from fingerbench.nets import ARCHITECTURES, NETWORKS
from fingerbench.records import Images
from fingerbench.task import Classification
from fingerbench.vision import torchvision
from fingerbench.workshop import native_bfloat16, pick_bfloat16, pick_device
from fingerbench.zoo.train import Recipe, Workbench, supervise

CLASSES = 10
LR = 0.01  # low enough that random labels make no loss infinite
WARM_UP = 2  # batches of the plain loop
REPLAYED = replay.WARM_UP + 2  # batches of ours on a GPU until steps are replayed


class Pictures(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR10 gives them: each an array that becomes a PIL image, then a tensor."""

    def __init__(self, images: Images) -> None:
        from torchvision import transforms

        side = images.x.shape[-1]
        steps = [transforms.RandomCrop(side, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose(steps)
        self.to_picture = torchvision.transforms.functional.to_pil_image
        self.x, self.y = images.x.permute(0, 2, 3, 1).contiguous().numpy(), images.y.tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.to_picture(self.x[index])), self.y[index]


def ours(
    network: Network,
    images: Images,
    batch: int,
    device: torch.device,
    autocast: bool,
    seconds: float,
    *,
    replayed: bool = True,
    compiled: bool = False,
) -> float:
    """Return images per second of `fit` over about `seconds`, without the first batch, on a GPU the first REPLAYED."""
    random = torch.Generator().manual_seed(0)
    bench = Workbench(device, autocast, Augment(4, True), random, Classification(CLASSES), compiled=compiled)
    model = network.build()
    replay.allow(replayed)

    first = REPLAYED if device.type == "cuda" else 1

    def taken(steps: int) -> tuple[int, float]:
        n = min(steps, len(images) // batch) * batch  # no batch of another size, for which a GPU would compile anew
        part, epochs = Images(images.x[:n], images.y[:n]), max(1, round(steps * batch / n))
        recipe = Recipe(epochs, min(batch, n), LR, 0.9, 5e-4, "cosine")
        return n * epochs, machine.timed(lambda: supervise(model, part, recipe, bench), device)

    taken(first)  # slowed by what is done but once
    few, before = taken(first)
    step = max(taken(first + 1)[1] - before, before / (10 * first))
    many, after = taken(first + max(1, round(seconds / step)))
    return (many - few) / (after - before)


def plain(network: Network, images: Images, batch: int, device: torch.device, workers: int, seconds: float) -> float:
    """Return images per second of the plain loop, over `seconds` or one batch, after WARM_UP batches."""
    model = network.build().to(device).train()
    sgd = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    pinned = device.type == "cuda"
    loader = DataLoader(Pictures(images), batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pinned)
    step, seen, began = 0, 0, 0.0
    while True:
        for x, y in loader:
            if step == WARM_UP:
                began = time.perf_counter()
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            loss = criterion(model(x), y)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            loss.item()  # waits for the device
            step += 1
            seen += len(x) if step > WARM_UP else 0
            if step > WARM_UP and time.perf_counter() - began >= seconds:
                return seen / (time.perf_counter() - began)


def row(architecture: str, arguments: argparse.Namespace, images: Images, peaks: dict[bool, float]) -> dict[str, str]:
    """Return the line of one architecture; peaks: FLOP per second, of bfloat16 for True, where it is not emulated."""
    device = pick_device(arguments.device)
    network = Network(architecture, CLASSES, arguments.width, (3, arguments.size, arguments.size))
    batch, seconds = arguments.batch, arguments.seconds
    there = Images(images.x.to(device), images.y.to(device))
    speeds = {autocast: ours(network, there, batch, device, autocast, seconds) for autocast in peaks}
    papers = plain(network, images, batch, device, arguments.workers, seconds)
    chosen = pick_bfloat16("auto", device, architecture)
    gpu = {}
    if device.type == "cuda":
        ways = {"every kernel launched": {"replayed": False}, "compiled": {"compiled": True}}
        gpu = {name: f"{ours(network, there, batch, device, True, seconds, **way):.1f}" for name, way in ways.items()}
    share = speeds[chosen] * network.flop("train") / peaks[chosen]
    low = speeds.get(True)
    return {
        "architecture": architecture,
        "plain loop, images/s": f"{papers:.1f}",
        "ours, float32": f"{speeds[False]:.1f}",
        "ours, bfloat16": f"{low:.1f}" if low else "-",
        **gpu,
        "bfloat16 / float32": f"{low / speeds[False]:.2f}" if low else "-",
        "picked": "bfloat16" if chosen else "float32",
        "ours / plain": f"{speeds[chosen] / papers:.2f}",
        "share of peak": f"{share:.1%}",
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=NETWORKS, default=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--width", type=float, default=1.0, help="of the published channels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images (default: %(default)s)")
    parser.add_argument("--images", type=int, default=25_000, help="of an epoch, at most (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of an image (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="a cell, about (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    if arguments.images < arguments.batch:
        parser.error(f"--images: expected at least a batch, {arguments.batch}; got {arguments.images}")
    return arguments


def main() -> None:
    """Measure and print a table."""
    arguments = parse()
    machine.like_a_worker(arguments.threads)
    device = pick_device(arguments.device)
    random = torch.Generator().manual_seed(0)
    shape = (arguments.images, 3, arguments.size, arguments.size)
    x = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    images = Images(x, torch.randint(CLASSES, (len(x),), generator=random))
    began = machine.describe(device)
    types = {False: torch.float32, True: torch.bfloat16} if native_bfloat16(device) else {False: torch.float32}
    peaks = {low: machine.peak_flop(device, dtype) for low, dtype in types.items()}
    rows = [row(architecture, arguments, images, peaks) for architecture in arguments.architectures]
    parts = [
        f"{began} at the start",
        f"Random images 3x{arguments.size}x{arguments.size}, width {arguments.width:g}, batch {arguments.batch}, about "
        f"{arguments.seconds:g} s a cell; the plain loop has {arguments.workers} more processes for its images. "
        'Picked is what `precision=auto` picks: "ours" in the last two columns. Peak of a matrix product: '
        f"{peaks[False] / 1e9:.0f} GFLOP/s in float32"
        + (
            f", {peaks[True] / 1e9:.0f} in bfloat16." if True in peaks else "; bfloat16 is emulated here, and left out."
        ),
        machine.table(rows),
    ]
    machine.publish(parts, arguments.out)


if __name__ == "__main__":
    main()
