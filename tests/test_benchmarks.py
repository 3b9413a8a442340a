"""The benchmarks run, on next to nothing; that their numbers mean something, a quiet machine must say."""

import importlib
import re
from collections import Counter

import pytest
import torch
from conftest import ROOT, TINY, finish, start

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.cost import Sizes, effort
from fingerbench.evaluate import gates
from fingerbench.nets import network
from fingerbench.workshop import native_bfloat16


@pytest.fixture
def zoo_cost(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("zoo_cost")


def columns(text):
    """Return the rows of every markdown table in `text`, each a list of its cells."""
    return [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")
    ]


@pytest.mark.slow
def test_train_speed_measures_three_loops_and_their_ratios(tmp_path):
    words = "--width 0.125 --batch 8 --images 16 --size 16 --seconds 0.1 --device cpu --workers 1"
    words += " --architectures resnet18 vgg13_bn"
    output = finish(start(["benchmarks/train_speed.py"], *words.split(), "--out", str(tmp_path / "t.md")))
    assert output == (tmp_path / "t.md").read_text()
    assert "torch" in output and "cores" in output and "Random images 3x16x16" in output
    _, _, *rows = columns(output)
    assert [row[0] for row in rows] == ["resnet18", "vgg13_bn"]
    for _, plain, low, high, gain, picked, ratio, share in rows:
        if native_bfloat16(torch.device("cpu")):
            assert float(gain) == pytest.approx(float(high) / float(low), abs=0.02)
        else:  # where it is emulated a batch takes minutes
            assert high == gain == "-" and picked == "float32"
        chosen = float(high if picked == "bfloat16" else low)
        assert float(ratio) == pytest.approx(chosen / float(plain), abs=0.02) and 0 < float(share[:-1]) < 100


@pytest.mark.parametrize(("name", "words"), [("train_speed", ["--device=cpu"]), ("zoo_cost", ["data=digits"])])
def test_a_stopwatch_runs_while_pytorch_is_set_as_in_a_worker(zoo_cost, monkeypatch, name, words):
    module, noted = importlib.import_module(name), []
    part = {"train_speed": "row", "zoo_cost": "report"}[name]
    monkeypatch.setattr(module, part, lambda *_: noted.append(torch.backends.cudnn.benchmark) or {"a": "b"})
    monkeypatch.setattr(module.machine, "peak_flop", lambda *_: 1.0)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    module.main()
    assert noted and all(noted)


def test_train_speed_refuses_fewer_images_than_a_batch():
    assert "at least a batch" in finish(start(["benchmarks/train_speed.py"], "--images", "4"), code=2)


@pytest.mark.slow
def test_half_precision_asks_every_suspect_again(built):
    words = [*TINY, f"store={built[0]}", "attack=[source,distill]", "--methods", "random"]
    _, _, *rows = columns(finish(start(["benchmarks/half_precision.py"], *words)))
    assert [row[:2] for row in rows] == [["random", "6"]]
    for _, suspects, labels, scores, most in rows:
        assert 0 <= int(scores) <= int(suspects) and (float(most) > 0) == (int(scores) > 0)
        assert float(labels.rstrip("%")) < 20


@pytest.mark.slow
def test_determinism_measures_both_by_turns_and_their_ratio():
    words = "--architectures resnet18 --images 8 --batch 8 --size 16 --rounds 1 --device cpu"
    output = finish(start(["benchmarks/determinism.py"], *words.split()))
    _, _, *rows = columns(output)
    assert [row[0] for row in rows] == ["resnet18", "sagan"]
    for _, off, on, ratio in rows:
        assert float(ratio) == pytest.approx(float(on) / float(off), rel=0.1, abs=0.1)


def test_rounding_to_half_precision_changes_weights_and_buffers_by_little(zoo_cost):
    model = network("resnet18", 10, 0.125)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = importlib.import_module("half_precision").rounded(model).state_dict()
    assert all(torch.allclose(after[name], tensor, rtol=1e-3, atol=1e-6) for name, tensor in before.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_zoo_cost_has_a_line_for_everything(tmp_path):
    words = [*TINY, "method=naturalfinger", "attack=[source,finetune,adversarial]", f"store={tmp_path / 'store'}"]
    output = finish(start(["benchmarks/zoo_cost.py"], "--seconds", "1", *words))
    rows = {row[0]: row for row in columns(output) if len(row) == 5}
    families = {
        "source",
        "surrogates",
        "finetune",
        "adversarial",
        "sagan",
        "fid",
        "agreement",
        "evaluation, 20 queries",
    }
    assert families | {"naturalfinger fingerprint", "naturalfinger's loop", "total"} == set(rows) - {"what", ":---"}
    seconds = {name: float(row[3]) for name, row in rows.items() if name not in ("what", ":---")}
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) == pytest.approx(2 * seconds["total"], rel=0.01)
    for expected in ("Wall clock:", "s an epoch of a batch of 80 latents", "Checkpoints:", "Peak memory of a worker"):
        assert expected in output
    assert not (tmp_path / "store").exists()


def test_zoo_cost_respects_the_store(built, zoo_cost):
    words = [*TINY, f"store={built[0]}", "method=random", "attack=[source,finetune,distill]"]
    bench, really = zoo_cost.opened(words)
    assert really and zoo_cost.ordered([bench], missing=True) == []
    everything = zoo_cost.ordered([bench], missing=False)
    assert {spec.key for spec in everything} == {spec.key for spec in zoo_cost.plan(bench)}
    more, _ = zoo_cost.opened([*words[:-1], "attack=[source,prune]"])
    lacking = {spec.kind for spec in zoo_cost.ordered([more], missing=True)}
    assert lacking == {"model", "response", "agreement"}


def test_zoo_cost_counts_what_methods_share_once(zoo_cost, tmp_path):
    bench, really = zoo_cost.opened([*TINY, f"store={tmp_path}", "attack=[source,finetune]"])
    two = [bench.using("akh"), bench.using("ipguard")]
    kinds = Counter(spec.kind for spec in zoo_cost.ordered(two, missing=False))
    asked = {"fingerprint": 2, "response": 2 * len(bench.models), "agreement": len(gates.plan(bench))}
    assert kinds == {"model": len(bench.models), **asked} and asked["agreement"]
    parts = zoo_cost.report(two, really, False, 0.1)
    assert parts[0].startswith("`") and "attack=[source,finetune] --methods akh ipguard`" in parts[0]
    for fingerprint in ("akh fingerprint", "ipguard fingerprint"):
        assert fingerprint in parts[3]


def test_zoo_cost_assumes_cifar10_and_says_so(zoo_cost, tmp_path):
    words = ["profile=paper", "data=cifar10", f"data.root={tmp_path}", "method=random", "attack=[source]"]
    bench, really = zoo_cost.opened(words)
    sizes = Sizes.of(bench.data)
    assert not really and (sizes.half, sizes.finetune, sizes.test, sizes.transfer) == (25000, 5000, 5000, 50000)
    refused = finish(start(["benchmarks/zoo_cost.py"], "--missing", *words), code=2)
    assert re.search(r"error: --missing: expected the data set on disk.*", refused)


def test_kernels_are_counted_and_views_are_not(zoo_cost):
    x = torch.ones(2, 3, requires_grad=True)
    with importlib.import_module("probe").Kernels() as kernels:
        y = x.t().reshape(6) * 2  # reshape copies what is transposed
        assert kernels.count == 2
        y.detach()[:3].add_(1)
    assert kernels.count == 3


def test_a_line_through_two_batches_keeps_the_price_of_a_step_apart(zoo_cost):
    probe = importlib.import_module("probe")
    points = [probe.Point(2, 1.2, 300.0), probe.Point(12, 2.2, 500.0)]
    assert probe._line(points, "seconds") == pytest.approx((1.0, 0.1))
    assert probe._line(points, "memory") == pytest.approx((260.0, 20.0))
    assert probe._next(points, 128, left=10.01) == 40  # two tries of 1 + 40 / 10 seconds
    assert probe._next(points, 128, left=4.0) is None  # 10 images are no more
    assert probe._next(points[:1], 5, left=0.0) == 5 and probe._next([probe.Point(5, 1.0, 1.0)], 5, 9.0) is None


def test_the_wall_clock_waits_for_parents(zoo_cost):
    bench = Bench(config.compose(["method=random", "attack=[source,finetune]"]))
    models = [bench.models[name] for name in ("source", "finetune/FTAL", "finetune/FTLL", "mirror/source")]
    seconds = dict(zip((spec.key for spec in models), (10.0, 5.0, 5.0, 1.0), strict=True))
    assert zoo_cost.wall_clock(models, seconds, 1) == 21.0
    assert zoo_cost.wall_clock(models, seconds, 2) == 15.0
    assert zoo_cost.wall_clock(models[1:3], seconds, 2) == 5.0  # the source is there


def test_the_loop_counts_the_flop_of_the_method(zoo_cost):
    bench = Bench(config.compose(["method=naturalfinger"]))
    spec, sizes = bench.fingerprint_spec, Sizes.of(bench.data)
    split = zoo_cost.work(spec, sizes)
    assert sum(n * one.flop for one, n in split.items()) == pytest.approx(effort(spec, sizes).flop)


def test_the_peak_is_that_of_a_matrix_product(zoo_cost):
    machine = importlib.import_module("machine")
    assert machine.peak_flop(torch.device("cpu"), torch.float32, side=64) > 1e6
