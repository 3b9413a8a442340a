"""Shared by the tests: a tiny zoo on the digits, real in every part."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from standin import EVERY, STANDIN, standin
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]

# Those that this project ships; a user's own come without an edit here.
METHODS = list(OmegaConf.load(ROOT / "conf/experiment/methods.yaml").experiment.grid.method)

torch.set_num_threads(1)  # two busy threads on two busy cores are many times slower than one

TINY = [
    "zoo.architectures=[resnet18,vgg13_bn]",
    "surrogates.positives=[vgg13_bn]",
    "surrogates.scratch=[resnet18,vgg13_bn]",
    "surrogates.distilled=[vgg13_bn]",
    "zoo.training.epochs=4",
    "zoo.tuning.epochs=1",
    "data.transfer=300",
    "queries=20",
    "jobs=1",  # each worker takes seconds to start
]


def slow_but(quick, names):
    """Return the names as parameters, slow but for those that are quick enough for CI."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


class KilledError(Exception):
    """Stands for the end of a process in the middle of a training."""


# What raises on a GPU under deterministic=true: see torch.use_deterministic_algorithms.
UNREPEATABLE = {
    *("adaptive_max_pool2d_backward", "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "cumsum", "histc"),
    *("_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward", "upsample_linear1d_backward", "put_"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("median", "kthvalue", "nll_loss2d_forward", "max_unpool2d", "_ctc_loss_backward"),
}


class Recorder(TorchDispatchMode):
    """Notes in `names` which operations run inside the block, those of the gradients among them."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


# What takes longest begins first, so that no worker is left alone with it at the end.
LONG = ("test_paper", "test_run", "test_readme", "test_status", "test_gpu")


def pytest_collection_modifyitems(items):
    places = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


LEDGER = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--faults", type=int, default=1, help="how many times to kill in tests/test_faults.py")
    parser.addoption("--ledger", type=Path, help="also write what became of the faults here, as a table")


@pytest.fixture(scope="session")
def faults(request):
    """How often to inject a fault that may be injected at many moments."""
    return request.config.getoption("faults")


@pytest.fixture
def ledger(request):
    """Note a fault, how often it was injected and survived, and how many finished artefacts it cost."""
    rows = request.config.stash.setdefault(LEDGER, [])

    def note(fault, injected, survived, lost):
        rows.append((fault, injected, survived, lost))

    return note


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(LEDGER, [])
    if not rows:
        return
    total = ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    lines = ["| fault | injected | survived | finished artefacts lost |", "| :--- | ---: | ---: | ---: |"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in [*rows, total]]
    terminalreporter.section("faults")
    terminalreporter.write_line("\n".join(lines))
    if config.getoption("ledger"):
        config.getoption("ledger").write_text("\n".join(lines) + "\n")


def start(script, *words, cwd=ROOT, environment=(), **kwargs):
    """Start `python script words...`, with more in its environment, and return the process, its output as text."""
    environment = os.environ | {"PYTHONPATH": str(cwd), "COLUMNS": "120"} | dict(environment)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *script, *words], cwd=cwd, env=environment, **pipes, **kwargs)


def told(process, timeout=300):
    """Wait for a process, at most `timeout` seconds, and return its output."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()  # it must not work on beside the next tests
        pytest.fail(f"not done after {timeout} s: {process.communicate()[0]}")


def finish(process, code=0, timeout=300):
    """Wait for a process, at most `timeout` seconds, and return its output; its exit code must be `code`."""
    output = told(process, timeout)
    assert process.returncode == code, output
    return output


def run(store, folder, *words, code=0, tiny=True, timeout=300):
    """Run `python run.py`, on the tiny zoo unless told otherwise, and return its output."""
    settings = [*(TINY if tiny else []), f"store={store}", f"hydra.run.dir={folder}"]
    return finish(start(["run.py"], *settings, *words), code, timeout)


# Runs run.py with each of several lists of words, all in one process, and prints the exit code and output of each.
SEVERAL = """
import contextlib, io, json, runpy, sys
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        try:
            code = runpy.run_path("run.py", run_name="__main__") and 0
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, output.getvalue()]))
"""


def refuse(store, folder, cases, *settings):
    """Run `python run.py` with the words of each case, (words, answer); it must refuse all, with those answers."""
    settings = [*settings, f"store={store}", f"hydra.run.dir={folder}"]
    lines = finish(start(["-c", SEVERAL, json.dumps([[*settings, *words] for words, _ in cases])])).splitlines()
    for (words, answer), (code, output) in zip(cases, map(json.loads, lines), strict=True):
        assert code == 2 and f"error: {answer}" in output and "Traceback" not in output, (words, code, output)


def same_weights(one, other):
    """Tell whether two networks, or the state dicts of such, have the same names and, to the bit, the same tensors."""
    one, other = (it.state_dict() if isinstance(it, torch.nn.Module) else it for it in (one, other))
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(params=EVERY)
def device(request):
    """A device on which float32 is float32: TF32, on by default in cuDNN, keeps 10 bits of 23."""
    conv, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with standin() if request.param == STANDIN.type else nullcontext():
        yield torch.device(request.param)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = conv, product


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A store with the tiny zoo of two families, built by one run; (store, run folder, output).

    The run is one for all processes that test; each has a copy of the store, to which tests add.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    store, said = folder / "store", folder / "output.txt"
    with FileLock(f"{folder}.lock"):
        if not said.is_file():
            output = run(store, folder / "run", "method=random", "attack=[source,finetune,distill]", "jobs=2")
            said.write_text(output)
    copy = shutil.copytree(store, tmp_path_factory.mktemp("copy") / "store")
    return copy, folder / "run", said.read_text()
