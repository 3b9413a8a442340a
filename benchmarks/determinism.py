"""What does deterministic=true cost? The zoo's trainer and a GAN's, with and without it by turns, in one run.

    python benchmarks/determinism.py [--architectures resnet18 xception] [--width 0.125] [--out TABLE.md]

Each number is the best of so many rounds, on a CPU in processor time, so that other work disturbs it little. Images are
random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch

from fingerbench.data.augment import Augment
from fingerbench.gans.sagan import Sagan
from fingerbench.nets import ARCHITECTURES, NETWORKS, network
from fingerbench.records import Images
from fingerbench.seeds import fix_order
from fingerbench.task import Classification
from fingerbench.workshop import pick_bfloat16, pick_device
from fingerbench.zoo.train import Recipe, Workbench, supervise

CLASSES = 10
LR = 0.01  # low enough that random labels make no loss infinite
GAN_STEPS = 1


def network_training(name: str, width: float, images: Images, batch: int, device: torch.device) -> Callable[[], object]:
    """Return what trains a network for one epoch of `images`, in the type that precision=auto picks."""
    autocast, (c, h, w) = pick_bfloat16("auto", device, name), images.x.shape[1:]
    recipe = Recipe(1, batch, LR, 0.9, 5e-4, "cosine")
    model = network(name, CLASSES, width, shape=(c, h, w))

    def train() -> None:
        generator = torch.Generator().manual_seed(0)
        bench = Workbench(device, autocast, Augment(4, True), generator, Classification(CLASSES))
        supervise(model, images, recipe, bench)

    return train


def gan_training(width: float, images: Images, batch: int, device: torch.device) -> Callable[[], object]:
    """Return what trains a new SAGAN for some steps."""
    design = Sagan(width=width, steps=GAN_STEPS, batch=batch)
    return lambda: design.train(images, CLASSES, torch.Generator().manual_seed(0), device)


def row(name: str, train: Callable[[], object], rounds: int, device: torch.device) -> dict[str, str]:
    """Return the line of one training: seconds without and with deterministic=true, and their ratio."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 1):
        for deterministic, taken in seconds.items():
            fix_order(deterministic)
            began = time.process_time()
            waited = machine.timed(train, device)
            taken.append(time.process_time() - began if device.type == "cpu" else waited)
    off, on = (min(taken[1:]) for taken in seconds.values())  # the first round was slowed by what is done but once
    return {"trained": name, "false, s": f"{off:.3f}", "true, s": f"{on:.3f}", "true / false": f"{on / off:.2f}"}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=NETWORKS, default=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--width", type=float, default=0.125, help="of the published channels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images (default: %(default)s)")
    parser.add_argument("--images", type=int, default=128, help="of an epoch (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of an image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, help="also write the table here")
    a = parser.parse_args()
    # Steps are launched one by one: so few would be captured and hardly replayed.
    machine.like_a_worker(1, deterministic=True, replayed=False)
    device = pick_device(a.device)
    x = torch.randint(256, (a.images, 3, a.size, a.size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Images(x, torch.arange(a.images) % CLASSES).to(device)
    trainings = {name: network_training(name, a.width, images, a.batch, device) for name in a.architectures}
    trainings["sagan"] = gan_training(a.width, images, a.batch, device)
    rows = [row(name, train, a.rounds, device) for name, train in trainings.items()]
    clock = "processor seconds" if device.type == "cpu" else "seconds"
    settings = f"{a.images} images 3x{a.size}x{a.size}, width {a.width:g}, batch {a.batch}; {clock}, best of {a.rounds}"
    machine.publish([f"{machine.describe(device)} at the end", settings, machine.table(rows)], a.out)


if __name__ == "__main__":
    main()
