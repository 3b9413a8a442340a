"""The owner's own network: a function of his as an architecture, and his weights as the source."""

import json
import sys
import types

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import ROOT, TINY, finish, same_weights, start
from test_readme import FILES
from torch import nn

import fingerbench as fb
from fingerbench import card
from fingerbench.cost import Sizes, effort
from fingerbench.data.augment import Augment
from fingerbench.errors import UserError
from fingerbench.exchange import export_to
from fingerbench.nets import final_layer, network
from fingerbench.ops import predict
from fingerbench.store import with_needs
from fingerbench.zoo.given import Given, digest
from fingerbench.zoo.table import Zoo
from fingerbench.zoo.train import Recipe, Scratch, Workbench, supervise

NET = "python:mynet.net"
RECIPE = Recipe(epochs=8, batch=64, lr=0.05, momentum=0.9, weight_decay=0.0, schedule="cosine")
OWN = ["zoo.source=python:mynet.net", "attack=[source,finetune]", "method=ipguard"]

ODD = """
import torch
from torch import nn

KEPT = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, classes))

def grey(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, classes))

def rows(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(10, classes))

def computed(classes):
    model = net(classes)
    model.register_buffer("scale", torch.ones(int(torch.ones(3).sum().item())), persistent=False)
    return model

def raises(classes):
    raise OSError("no licence\\nfor this")

def nothing(classes):
    pass

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def likely(classes):
    return nn.Sequential(net(classes), nn.Softmax(1))

def eleven(classes):
    return net(11)

def large(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))

def kept(classes):
    return KEPT

def pretrained(classes):
    backbone = nn.Linear(768, 30)
    nn.init.ones_(backbone.weight)
    return nn.Sequential(nn.Flatten(), backbone, nn.Linear(30, classes))

class Two(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.one, self.two = nn.Linear(768, classes), nn.Linear(768, classes)

    def forward(self, x):
        x = x.flatten(1)
        return (self.one(x) + self.two(x)) / 2

class Aux(Two):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Tied(Two):
    def __init__(self, classes):
        super().__init__(classes)
        self.one = self.body = nn.Linear(768, 768)

    def forward(self, x):
        return self.two(self.body(self.one(x.flatten(1))))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that Python does not look into, where commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mynet.py").write_text(FILES["mynet.py"])
    (tmp_path / "odd.py").write_text(ODD)
    (tmp_path / "broken.py").write_text("import torch\n\nno_such_name\n")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    (tmp_path / "ends.py").write_text("import sys\n\nsys.exit('usage: ends')\n")
    yield tmp_path
    for name in ("mynet", "odd", "twice"):
        sys.modules.pop(name, None)


def trained():
    """Return the network of the README, trained as its owner did: the digits of half A."""
    torch.manual_seed(5)
    data = fb.open(*TINY).data
    bench = Workbench(torch.device("cpu"), False, Augment(0, False), torch.Generator().manual_seed(5), data.task)
    model = supervise(network(NET, 10, shape=data.shape), data.a, RECIPE, bench)
    return model.to(memory_format=torch.contiguous_format)


def saved(model, path, metadata=None):
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    return path


def zoo(given=None, source="resnet18"):
    recipe = Recipe(epochs=2, batch=16, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    return Zoo("digest", 10, source, 1.0, Augment(0, False), "float32", 0, Scratch(recipe), given)


def refused(match, function, *arguments, **options):
    """Hold that the call is refused so, in one line."""
    with pytest.raises(UserError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_network_and_its_weights_are_the_source_of_a_whole_run(here):
    model = trained()
    saved(model, here / "mine.safetensors")
    words = [*TINY, *OWN, "zoo.weights=mine.safetensors", "store=store"]
    # Nothing but the current folder leads to mynet.py, neither here nor in a worker.
    environment = {"PYTHONPATH": str(ROOT)}
    output = finish(start([ROOT / "run.py"], *words, "hydra.run.dir=run", cwd=here, environment=environment))
    assert f"built as published, whatever zoo.width is: {NET}" in output
    bench = fb.open(*words)
    source, x = bench.zoo.original(), bench.data.test.pixels()
    stored, facts = bench.store.load(source).tensors, bench.store.facts(source)
    assert same_weights(stored, model)
    torch.testing.assert_close(predict(bench.model("source"), x), predict(model, x))
    assert facts["losses"] == [] and facts["parent"] is None and not facts["autocast"] and facts["accuracy"] > 0.5
    others = {name: bench.store.load(spec).tensors for name, spec in bench.models.items() if name != "source"}
    assert bench.models["finetune/FTLL"].parent == source
    head = {f"{len(model) - 1}.weight", f"{len(model) - 1}.bias"}
    assert {name for name in stored if not torch.equal(stored[name], others["finetune/FTLL"][name])} == head
    assert not torch.equal(stored["1.weight"], others["mirror/source"]["1.weight"])
    assert bench.store.facts(bench.models["mirror/source"])["losses"]
    scores = pd.read_csv(here / "run" / "scores.csv").set_index("suspect")
    assert scores.score["source"] == scores.score_8bit["source"] == 1 > scores.score["mirror/source"]
    assert set(scores.arch) == {NET}
    assert json.loads((here / "run" / "manifest.json").read_text())["store"]["suspects"]["source"] == source.key
    an_export_names_what_it_lacks(bench, here / "out", source)
    a_function_that_changed_is_noticed(bench, here)


def an_export_names_what_it_lacks(bench, folder, source):
    export_to(bench, str(folder))
    text, payload = (folder / "README.md").read_text(), folder / "model" / source.key / "payload.safetensors"
    assert "zoo.weights=FILE" in text and "mine.safetensors" not in text
    assert f"FILE: the weights of the source, `model/{source.key}/payload.safetensors` here." in text
    assert f"Code that is not here, of whoever made this: `{NET}`." in text and "| Given |" in text
    assert fb.open(*bench.overrides[:-2], f"zoo.weights={payload}").zoo.original().key == source.key
    assert "which the owner of the source has" in card.text(bench, [bench.models["finetune/FTAL"]], "finetune/FTAL")


def a_function_that_changed_is_noticed(bench, folder):
    (folder / "mynet.py").write_text((folder / "mynet.py").read_text().replace("3, 16, 3", "3, 16, 5"))
    del sys.modules["mynet"]
    refused(f"fit {NET}; name .*differs in 1.weight .float32 .16, 3, 3, 3. for", bench.model, "source")


def test_keys_without_given_weights_are_what_they_were(here):
    plain = zoo()
    assert (
        plain.original().key == "aadec521b29e757e8e51e54bee09e849050dce9f0b80f8a71704e664e8ff98de"
    )  # as before there were given weights
    given = zoo(Given(digest({"w": torch.ones(1)}), "anywhere"))
    assert given.original().key != plain.original().key
    assert given.trained("mirror/source", "resnet18", "B") == plain.trained("mirror/source", "resnet18", "B")
    specs = with_needs(fb.open(*TINY, "attack=all", "method=metafinger").plan())
    assert len(specs) > 60 and not any("Given" in json.dumps(spec.identity()) for spec in specs.values())


def test_what_is_made_of_the_source_hangs_on_its_weights_and_nothing_else_does(here):
    saved(network(NET), here / "one.safetensors")
    saved(network(NET), here / "two.safetensors")
    plain, one, two = (
        fb.open(*TINY, "zoo.source=python:mynet.net", *words)
        for words in ([], ["zoo.weights=one.safetensors"], [f"zoo.weights={here / 'two.safetensors'}"])
    )
    for bench in (one, two):
        changed = {name for name, spec in bench.models.items() if spec != plain.models[name]}
        assert changed == {suspect.name for suspect in bench.suspects if suspect.pirated}
        assert bench.models["source"].key == bench.zoo.original().key == bench.surrogates[0][0].key
        assert {spec.key for spec in bench.surrogates[0]}.isdisjoint(spec.key for spec in plain.surrogates[0])
        assert [spec.key for spec in bench.surrogates[1]] == [spec.key for spec in plain.surrogates[1]]
        assert bench.fingerprint_spec.key != plain.fingerprint_spec.key
    assert one.zoo.original().key != two.zoo.original().key
    sizes = Sizes.of(one.data)
    assert {step.operation for step in one.zoo.original().work(sizes)} == {"answer"}, "it is not trained"
    assert all(effort(spec, sizes).flop > 0 for spec in one.plan())


def test_the_same_weights_in_another_file_are_the_same_source(here):
    model = network(NET)
    one = Given.of(str(saved(model, here / "one.safetensors")))
    again = Given.of(str(saved(model, here / "again.safetensors", {"format": "pt", "by": "me"})))
    assert one == again and one.path != again.path and zoo(one).original().key == zoo(again).original().key
    with torch.no_grad():
        final_layer(model).bias[0] += 1
    other = Given.of(str(saved(model, here / "one.safetensors")))
    assert other != one and zoo(other).original().key != zoo(one).original().key
    refused("expected the weights that this run began with", one.fitted, network(NET), NET)


def test_fingerbenchs_own_networks_can_be_given_too(here):
    model = network("resnet18", 10, 0.125)
    words = [*TINY, f"zoo.weights={saved(model, here / 'mine.safetensors')}"]
    given = fb.open(*words).zoo.given.fitted(network("resnet18", 10, 0.125), "resnet18")
    assert same_weights(model, given)
    wide = fb.open(*words, "zoo.width=0.25", f"store={here}")
    refused("does not fit resnet18: it differs in .* and 9. more; is it of this zoo.source", wide.model, "source")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("mynet.net", (3, 20, 20), 7),
        ("odd.net", (3, 16, 16), 10),
        ("odd.grey", (1, 8, 8), 3),  # one channel
        ("odd.rows", (1, 1, 10), 1),  # features, for a regression
        ("odd.computed", (3, 16, 16), 10),
    ],
)
def test_functions_are_taken_as_they_are(here, name, shape, classes):
    model = network(f"python:{name}", classes, shape=shape)
    assert model(torch.rand(5, *shape)).shape == (5, classes)
    with torch.device("meta"):  # where costs and sizes of ours are counted
        elsewhere = network(f"python:{name}", classes, shape=shape)
    assert {p.device.type for p in elsewhere.parameters()} == {"cpu"}
    torch.manual_seed(3)
    one = network(f"python:{name}", classes, shape=shape)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    network(f"python:{name}", classes, shape=shape)
    assert torch.equal(torch.random.get_rng_state(), state), "the trial draws no random numbers"
    assert not torch.equal(final_layer(one).weight, final_layer(model).weight)
    refused("expected width 1", network, f"python:{name}", classes, 0.5, shape=shape)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere.net", r"no module nowhere; put it into .*, or its folder into PYTHONPATH"),
        ("odd.inner.net", "no module odd.inner; put it"),
        ("odd.nett", r"unknown function of odd \(.*odd.py\) 'nett'; did you mean 'net'"),
        ("odd.KEPT_", "unknown function of odd"),
        ("net", "expected python:MODULE.FUNCTION, such as python:mynet.net; got 'python:net'"),
        ("odd.py:net", "expected python:MODULE.FUNCTION"),
        ("__main__.net", "expected a module that workers can import too"),
        ("broken.net", r"importing broken fails \(NameError: name 'no_such_name' is not defined\)"),
        ("needy.net", "importing needy fails .*No module named 'no_such_package'"),
        ("ends.net", r"importing ends fails \(SystemExit: usage: ends\)"),
        ("odd.raises", r"called with 10, fails \(OSError: no licence for this\)"),
        ("odd.nothing", "expected a function that returns a torch.nn.Module; got 'NoneType'"),
        ("odd.likely", "expected logits, which need not sum to 1; got .probabilities; leave the softmax out"),
        (
            "odd.eleven",
            r"expected outputs of shape \(2, 10\) of two images of 3x16x16; got shape \(2, 11\) in training",
        ),
        ("odd.Aux", "got tuple in training"),
        ("odd.large", r"fails on images of 3x16x16 \(RuntimeError"),
        ("odd.kept", "expected new random weights at each call, and trained ones in zoo.weights=FILE"),
        ("odd.pretrained", "expected new random weights at each call"),
        ("odd.Two", "expected one last layer that makes the 10 outputs"),
        ("odd.Tied", "expected layers that share no weights"),
        ("odd.lazy", "expected layers of given sizes; got 'lazy ones, which have no weights yet'"),
    ],
)
def test_what_is_no_such_function_is_refused(here, name, match):
    refused(match, network, f"python:{name}", shape=(3, 16, 16))


def tiny(folder, name):
    return fb.open(*TINY, f"zoo.source=python:{name}", "zoo.training.epochs=1", "jobs=1", f"store={folder / 'store'}")


def test_a_module_that_workers_cannot_import_is_named(here, monkeypatch):
    ghost = types.ModuleType("ghost")
    ghost.net = lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(768, classes))
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    refused("python:ghost.net: no module ghost", tiny(here, "ghost.net").model, "source")


def test_a_worker_takes_the_module_that_this_process_takes(here, monkeypatch):
    (here / "first").mkdir()
    (here / "first" / "twice.py").write_text(ODD)
    (here / "twice.py").write_text("raise ImportError('the current folder comes last')\n")
    monkeypatch.syspath_prepend(here / "first")
    assert tiny(here, "twice.net").model("source")(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def spoil(state, kind):
    """Return a state dict that does not fit the network it is of."""
    state = {name: value.clone() for name, value in state.items()}
    match kind:
        case "lacking":
            return {name: value for name, value in state.items() if not name.startswith("2.")}
        case "more":
            return state | {"head.weight": torch.ones(2)}
        case "shape":
            return state | {"10.weight": torch.ones(12, 512), "10.bias": torch.ones(12)}
        case "type":
            return {name: value.half() if name == "1.weight" else value for name, value in state.items()}
        case "parallel":
            return {f"module.{name}": value for name, value in state.items()}
        case "nan":
            state["5.bias"][3] = float("nan")
    return state


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("lacking", f"does not fit {NET}: it lacks 2.weight, 2.bias, 2.running_mean and 2 more; is it of this zoo.sou"),
        ("more", f"does not fit {NET}: it has besides head.weight; is it"),
        ("shape", r"it differs in 10.weight \(float32 \(12, 512\) for float32 \(10, 512\)\), 10.bias"),
        (
            "type",
            r"it differs in 1.weight \(float16 \(16, 3, 3, 3\) for float32 .*; save model.float\(\).state_dict\(\)",
        ),
        (
            "parallel",
            r"it has besides module.1.bias, .*; save model.module.state_dict\(\), or take 'module.' off the",
        ),
        ("nan", "expected finite values; got others in 5.bias"),
        ("empty", "expected the weights of a network; got 'no tensor'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_made(here, kind, match):
    state = {} if kind == "empty" else spoil(network(NET).state_dict(), kind)
    safetensors.torch.save_file(state, here / "mine.safetensors")
    words = [*TINY, "zoo.source=python:mynet.net", "zoo.weights=mine.safetensors", f"store={here / 'store'}"]
    refused(match, lambda: fb.open(*words).model("source"))
    assert not (here / "store").exists()


def test_a_file_that_is_no_safetensors_is_refused(here):
    torch.save(network(NET).state_dict(), here / "mine.pt")
    (here / "folder").mkdir()
    sound = saved(network(NET), here / "sound.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(sound[: len(sound) // 2])
    for name in ("mine.pt", "cut.safetensors", "folder"):
        refused(rf"zoo.weights=.*{name}: .*safetensors.torch.save_file\(model.state_dict\(\), FILE\)", weights, name)
    refused("zoo.weights=.*nowhere: No such file or directory; name a safetensors", weights, "nowhere")
    refused("expected a safetensors file, or null; got 3", weights, "3")


def weights(name):
    return fb.open(f"zoo.weights={name}").zoo


def test_the_command_line_says_it_in_one_line(here):
    command = [*TINY, *OWN, "zoo.source=python:mynet.nett", "store=store", "hydra.run.dir=run"]
    output = finish(start([ROOT / "run.py"], *command, cwd=here, environment={"PYTHONPATH": str(ROOT)}), 2)
    assert output.startswith("error: ") and "did you mean 'net'" in output and output.count("\n") == 1, output
