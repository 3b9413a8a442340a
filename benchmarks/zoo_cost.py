"""What a configuration will cost on this machine, from a minute of probing: time, FLOP, checkpoints and memory.

    python benchmarks/zoo_cost.py profile=paper data=cifar10 method=naturalfinger [--missing] [--out TABLE.md]
    python benchmarks/zoo_cost.py profile=paper data=cifar10 --methods naturalfinger metafinger metav ipguard freqgan

It takes the words of run.py, plans the run, counts the images that go through each network (fingerbench/cost.py), and
times each kind of pass with random weights, at real width and image size, in batches that grow to the real one while
there is time. Nothing is made. CIFAR-10 need not be on disk. Left out: the start of processes, and loading and saving.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import machine
import torch
from probe import Loop, Probe, measure, used

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.cost import Costly, Operation, Other, Pass, Sizes, Work
from fingerbench.errors import UserError, require
from fingerbench.evaluate.run import plan
from fingerbench.evaluate.specs import FingerprintSpec, ResponseSpec
from fingerbench.gans.spec import GanSpec
from fingerbench.records import Dataset, Images
from fingerbench.store import Spec
from fingerbench.task import Classification
from fingerbench.workshop import pick_device
from fingerbench.zoo.model import ModelSpec
from fingerbench.zoo.table import MIRROR
from methods.naturalfinger import NaturalFinger

# Where the data set is not there: the splits of its loader, and CIFAR-100 for the transfer images.
ASSUMED = {"cifar10": Sizes((3, 32, 32), half=25_000, finetune=5_000, test=5_000, transfer=50_000)}
SHARES: dict[Operation, int] = {"answer": 1, "attack": 2, "train": 4}  # of the time of probing
LOOP_SHARE = 8

Prices = Mapping[tuple[Operation, Costly], Probe]


def opened(words: Sequence[str]) -> tuple[Bench, bool]:
    """Return the benchmark, and whether its data set is really there."""
    bench = Bench(config.compose(words), words)
    require("experiment" not in bench.settings, "zoo_cost.py", "the words of one run, without experiment=", words)
    try:
        _ = bench.data
    except UserError:
        sizes = ASSUMED.get(bench.settings.data.name)
        if sizes is None:
            raise
        transfer = min(sizes.transfer, bench.settings.data.transfer or sizes.transfer)
        empty = _empty(bench.settings.data.name, replace(sizes, transfer=transfer))
        return Bench(bench.settings, words, empty), False
    return bench, True


def _empty(name: str, sizes: Sizes) -> Dataset:
    def split(n: int) -> Images:
        return Images(torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(n, *sizes.shape), torch.arange(n) % 10)

    halves = split(sizes.half), split(sizes.half)
    return Dataset(name, Classification(10), *halves, *map(split, (sizes.finetune, sizes.test, sizes.transfer)))


def ordered(benches: Sequence[Bench], missing: bool) -> list[Spec]:
    """Return what runs on one store make, or what it lacks of that, in the order of the plans, parents first."""
    found: dict[str, Spec] = {}

    def visit(spec: Spec) -> None:
        if spec.key not in found and not (missing and benches[0].store.has(spec)):
            for parent in spec.needs():
                visit(parent)
            found[spec.key] = spec

    for bench in benches:
        for spec in plan(bench):
            visit(spec)
    return list(found.values())


def work(spec: Spec, sizes: Sizes) -> Work:
    """Return the work of a spec; NaturalFinger's optimisation is a pass of its own, a latent's through one epoch."""
    counted = spec.work(sizes)
    if not (isinstance(spec, FingerprintSpec) and isinstance(spec.method, NaturalFinger)):
        return counted
    method = spec.method
    loop = Pass("attack", Loop(method, spec.outline(sizes)), method.latent_batch)
    moves = method.epochs * method.batches(spec.budget) * method.latent_batch
    return Work({one: n for one, n in counted.items() if one.operation != "attack"}) + Work({loop: moves})


def probed(works: Sequence[Work], bench: Bench, seconds: float) -> Prices:
    """Time every kind of pass, the light ones first, so that what they leave of the time goes to the heavy ones."""
    batches: defaultdict[tuple[Operation, Costly], defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for counted in works:
        for one, images in counted.items():
            if not isinstance(one.network, Other):
                batches[one.operation, one.network][one.batch] += images
    # Of several batches the one that most images are in.
    todo = [Pass(*key, max(sizes, key=lambda size: sizes[size])) for key, sizes in batches.items()]
    todo.sort(key=lambda one: one.flop)
    shares = [LOOP_SHARE if isinstance(one.network, Loop) else SHARES[one.operation] for one in todo]
    ends, prices = time.monotonic() + seconds, {}
    for number, one in enumerate(todo):
        left = max(0.0, ends - time.monotonic())
        prices[one.operation, one.network] = measure(one, bench, left * shares[number] / sum(shares[number:]))
    return prices


def price(one: Pass, prices: Prices) -> float:
    """Return the seconds of an image; a network that cannot be probed is as fast as the others together."""
    if not isinstance(one.network, Other):
        return prices[one.operation, one.network].seconds
    flop = sum(network.flop(operation) for operation, network in prices)
    return one.flop * sum(probe.seconds for probe in prices.values()) / flop


def wall_clock(specs: Sequence[Spec], seconds: Mapping[str, float], jobs: int) -> float:
    """Return when the last is made if `jobs` workers take them as `Pool` does: the first whose parents are there."""
    waiting, unfinished, now = list(specs), {spec.key for spec in specs}, 0.0
    running: list[tuple[float, str]] = []
    while waiting or running:
        free = (s for s in waiting if not any(parent.key in unfinished for parent in s.needs()))
        spec = next(free, None) if len(running) < jobs else None
        if spec:
            waiting.remove(spec)
            heapq.heappush(running, (now + seconds[spec.key], spec.key))
        else:
            now, key = heapq.heappop(running)
            unfinished.remove(key)
    return now


def family(spec: Spec, one: Pass) -> str:
    """Return the row in which a pass of a spec stands."""
    if isinstance(spec, ModelSpec):
        name = spec.name.removeprefix(MIRROR).partition("/")[0]
        return "surrogates" if name == "surrogate" else name
    if isinstance(spec, ResponseSpec):
        return f"evaluation, {spec.fingerprint.budget} queries"
    if isinstance(one.network, Loop):
        return one.network.label
    return f"{spec.label}" if isinstance(spec, GanSpec | FingerprintSpec) else spec.kind


def costs(specs: Sequence[Spec], works: Sequence[Work], prices: Prices) -> list[dict[str, str]]:
    """Return a row a family, and the total."""
    numbers: defaultdict[str, set[str]] = defaultdict(set)
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for spec, counted in zip(specs, works, strict=True):
        for one, images in counted.items():
            for row in (family(spec, one), "total"):
                numbers[row].add(spec.key)
                totals[row][0] += images * price(one, prices)
                totals[row][1] += images * one.flop
    rows = [*(row for row in totals if row != "total"), *(["total"] if totals else [])]
    return [
        {
            "what": row,
            "artefacts": str(len(numbers[row])),
            "PFLOP": f"{totals[row][1] / 1e15:.3g}",
            "seconds of one worker": f"{totals[row][0]:.4g}",
            "core-hours": f"{totals[row][0] / 3600 * torch.get_num_threads():.3g}",
        }
        for row in rows
    ]


def speeds(prices: Prices) -> list[dict[str, str]]:
    """Return a row a probe."""
    return [
        {
            "network": network.label,
            "pass": operation,
            "images/s": f"{1 / probe.seconds:.3g}",
            "GFLOP an image": f"{network.flop(operation) / 1e9:.3g}",
            "GFLOP/s": f"{network.flop(operation) / probe.seconds / 1e9:.3g}",
            "batch timed": str(probe.images),
            "kernels a batch": str(probe.kernels),
        }
        for (operation, network), probe in prices.items()
    ]


def peaks(specs: Sequence[Spec], works: Sequence[Work], prices: Prices, base: float) -> dict[str, tuple[float, str]]:
    """Return the most memory in MiB of each kind of artefact, and which it is; `base`: bytes of an idle worker."""
    most: dict[str, tuple[float, str]] = {}
    for spec, counted in zip(specs, works, strict=True):
        for one in counted:
            probe = prices.get((one.operation, one.network))
            if probe:
                need = (base + probe.fixed + probe.memory * one.batch) / 2**20
                most[spec.kind] = max(most.get(spec.kind, (0.0, "")), (need, spec.label))
    return most


def checkpoints(specs: Sequence[Spec], sizes: Sizes) -> float:
    """Return the MiB of the weights of all models and GANs."""
    total = 0
    for spec in specs:
        with torch.device("meta"):
            if isinstance(spec, ModelSpec):
                networks = [spec.network(sizes.shape)]
            elif isinstance(spec, GanSpec):
                gan = spec.design.build(spec.classes, sizes.shape)
                networks = [gan.generator, gan.discriminator]
            else:
                continue
        total += sum(t.numel() * t.element_size() for n in networks for t in n.state_dict().values())
    return total / 2**20


def idle_bytes(bench: Bench, really: bool, device: torch.device) -> float:
    """Return the memory of a worker that does nothing yet: PyTorch and the images."""
    if device.type == "cuda":
        return 0.0
    splits = (bench.data.a, bench.data.b, bench.data.finetune, bench.data.test, bench.data.transfer)
    absent = 0 if really else sum(split.x.numel() for split in splits if split is not None)
    return used(device) + absent


def report(benches: Sequence[Bench], really: bool, missing: bool, seconds: float) -> list[str]:
    """Probe, and return the parts of the report. `benches`: one a method, alike but for that."""
    bench = benches[0]
    device, sizes = pick_device(bench.settings.device), Sizes.of(bench.data)
    machine_line = f"{machine.describe(device)} at the start"
    specs = ordered(benches, missing)
    if not specs:
        return [machine_line, "nothing is missing"]
    works = [work(spec, sizes) for spec in specs]
    base = idle_bytes(bench, really, device)
    prices = probed(works, bench, seconds)
    taken = {
        spec.key: sum(n * price(one, prices) for one, n in counted.items())
        for spec, counted in zip(specs, works, strict=True)
    }
    jobs = 1 if device.type == "cuda" else bench.jobs
    shared = "; the workers share one GPU, so one is counted" if device.type == "cuda" else ""
    memory = peaks(specs, works, prices, base)
    counts = f"halves {sizes.half}, finetune {sizes.finetune}, test {sizes.test}, transfer {sizes.transfer}"
    return [
        f"`{_words(benches)}`, {'what the store lacks' if missing else 'everything'}: {len(specs)} artefacts",
        machine_line,
        f"Images: {counts}{'' if really else '; assumed, since the data set is not there'}.",
        machine.table(costs(specs, works, prices)),
        f"Wall clock: {wall_clock(specs, taken, jobs) / 3600:.3g} h with {jobs} workers of "
        f"{torch.get_num_threads()} threads, each on cores of its own{shared}.",
        *_loop_line(works, prices),
        f"Checkpoints: {checkpoints(specs, sizes):.0f} MiB. Peak memory of a worker, about, "
        "extended from the batches timed to the real ones: "
        + "; ".join(f"{kind} {need:.0f} MiB ({label})" for kind, (need, label) in memory.items())
        + ".",
        machine.table(speeds(prices)),
    ]


def _words(benches: Sequence[Bench]) -> str:
    """Return what was asked for, as one would type it."""
    if len(benches) == 1:
        return " ".join(benches[0].overrides) or "defaults"
    shared = [word for word in benches[0].overrides if not word.startswith("method=")]
    return " ".join([*shared, "--methods", *(bench.settings.method.name for bench in benches)])


def _loop_line(works: Sequence[Work], prices: Prices) -> list[str]:
    return [
        f"NaturalFinger's loop: {prices[one.operation, one.network].seconds * one.batch:.3g} s an epoch of a batch of "
        f"{one.batch} latents; {one.network.method.epochs} epochs, and at most "
        f"{one.network.method.batches(one.network.outline.budget)} batches, which is what is counted: it stops when it "
        "has enough queries."
        for counted in works
        for one in counted
        if isinstance(one.network, Loop)
    ]


def main() -> None:
    """Probe and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for run.py")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all of these, in place of method=NAME")
    parser.add_argument("--missing", action="store_true", help="only what the store lacks")
    parser.add_argument("--seconds", type=float, default=60.0, help="of probing, about (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    try:
        bench, really = opened(arguments.overrides)
        settings = bench.settings
        machine.like_a_worker(settings.threads, settings.deterministic, settings.replay)
        require(really or not arguments.missing, "--missing", "the data set on disk, which keys hang on", "none")
        benches = [bench.using(method) for method in arguments.methods or ()] or [bench]
        machine.publish(report(benches, really, arguments.missing, arguments.seconds), arguments.out)
    except UserError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
