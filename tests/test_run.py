"""Whole runs on a tiny zoo: what is written, what is reused, and what survives kills, damage and company."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
from conftest import TINY, finish, refuse, run, start

import fingerbench as fb
from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.evaluate.run import plan

FAMILIES = "attack=[source,finetune,distill]"
COLUMNS = ["method", "source", "suspect", "family", "attack", "variant", "arch", "pirated", "mirror_of"]
COLUMNS += ["score", "score_8bit", "raw", "accuracy", "queries", "evasion", "seed", "profile"]


def stored(store, kind="model"):
    return sorted(path.parent for path in (store / kind).glob("*/record.json"))


def await_a_model(store):
    deadline = time.monotonic() + 120
    while not stored(store) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_run_writes_everything(built):
    store, folder, output = built
    scores = pd.read_csv(folder / "scores.csv", dtype={"variant": str})
    assert list(scores.columns) == COLUMNS
    assert len(scores) == 2 * (1 + 4 + 2) and scores.pirated.sum() == 7
    assert scores.set_index("suspect").score["source"] == 1.0
    assert scores.score.between(0, 1).all() and scores.score.nunique() > 3
    assert (scores.score_8bit == scores.score).all()  # these queries are images of 8 bits a value as they are
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == {"positives": 7, "negatives": 7} and 0 <= metrics["aruc"] <= 1
    assert metrics["cost"]["queries"] == 20 and metrics["cost"]["preparation_seconds"] == 0 < metrics["cost"]["seconds"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"] and manifest["seconds"]["made"]["model"] > 0
    assert set(manifest["peak_mib"]) == {"model", "fingerprint"} and min(manifest["peak_mib"].values()) > 10
    keys = manifest["store"]["suspects"]
    assert set(keys) == set(scores.suspect) and {store / "model" / key for key in keys.values()} <= set(stored(store))
    tensors = safetensors.torch.load_file(folder / "fingerprint.safetensors")
    assert tensors["queries"].shape == (20, 3, 16, 16) and tensors["labels"].shape == (20,)
    for name in ("aruc.png", "aruc.pdf", "queries.png"):
        assert (folder / "figures" / name).stat().st_size > 1000
    models = pd.read_csv(folder / "models.csv")
    accuracies = models.set_index("name").accuracy
    assert scores.accuracy.tolist() == accuracies[scores.suspect].tolist() and set(scores.evasion) == {"none"}
    assert models.accuracy.between(0, 1).all() and {"agreement", "seconds", "parent", "seed"} <= set(models.columns)
    assert "ARUC" in output and "finetune" in output and str(folder) in output


def test_the_same_again_makes_nothing(built, tmp_path):
    store, folder, _ = built
    earlier = tmp_path / "figures" / "gan.png"  # of another method, in the same folder
    earlier.parent.mkdir()
    earlier.touch()
    output = run(store, tmp_path, "method=random", FAMILIES)
    assert "nothing to make" in output
    assert not earlier.exists() and (tmp_path / "figures" / "queries.png").exists()
    assert (tmp_path / "scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()


@pytest.mark.slow
def test_one_family_builds_only_what_it_needs(tmp_path):
    words = ["method=random", "attack=finetune", "attack.finetune.variants=[FTLL,RTLL]", "zoo.training.epochs=1"]
    output = run(tmp_path / "store", tmp_path / "run", *words)
    assert "0 of 6 models" in output  # the source, its mirror, and two modes of each
    assert len(pd.read_csv(tmp_path / "run" / "scores.csv")) == 4


@pytest.mark.slow
def test_an_interrupted_build_says_so_and_leaves_no_worker(tmp_path):
    store = tmp_path / "store"
    settings = [*TINY, "jobs=2", f"store={store}", f"hydra.run.dir={tmp_path / 'run'}", "method=random", FAMILIES]

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests started in the background inherit that it is ignored

    process = start(["run.py"], *settings, start_new_session=True, preexec_fn=heed)
    await_a_model(store)
    os.killpg(process.pid, signal.SIGINT)
    assert "goes on where it was" in finish(process, 130)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_a_killed_worker_is_told_in_one_line_and_the_run_goes_on(built, tmp_path):
    store = tmp_path / "store"
    settings = [
        *TINY,
        "jobs=2",
        f"store={store}",
        f"hydra.run.dir={tmp_path / 'run'}",
        "method=random",
        "attack=[source,distill]",
    ]
    process = start(["run.py"], *settings)
    await_a_model(store)
    children = [path.read_text().split() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
    os.kill(int(next(pid for pids in children for pid in pids)), signal.SIGKILL)
    output = finish(process)
    assert "a worker died (out of memory, or killed) while making" in output and "tried once more" in output
    assert "Traceback" not in output
    scores, undisturbed = (pd.read_csv(folder / "scores.csv") for folder in (tmp_path / "run", built[1]))
    undisturbed = undisturbed[undisturbed["family"] != "finetune"].reset_index(drop=True)
    pd.testing.assert_frame_equal(scores, undisturbed, check_exact=True)


@pytest.mark.slow
def test_a_failing_maker_says_why(built, tmp_path):
    words = ["method=random", "attack=prune", "attack.prune.variants=[0.5]"]
    words += ["zoo.tuning.schedule=steps", "+zoo.tuning.milestones=[late]"]
    output = run(built[0], tmp_path, *words, code=1)
    assert "everything finished is kept" in output and "__round__" in output
    assert "failed as well: " in output and "left out, since they need those: 3" in output


def test_a_store_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    output = run(tmp_path / "file" / "store", tmp_path / "run", "method=random", FAMILIES, code=2)
    assert "error: cannot write to" in output and "store=DIR" in output and "Traceback" not in output


def test_a_run_folder_that_cannot_be_made_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    output = run(tmp_path / "store", tmp_path / "file" / "run", "method=random", FAMILIES, code=2)
    assert "error: cannot write to" in output and "hydra.run.dir=DIR" in output and "Traceback" not in output


QUOTED = 'expected key=value; a list is attack=[prune,noise]; a value with signs such as = or ü stands in quotes: "'
BAD = [
    ("method=ipgard", "unknown method 'ipgard'; did you mean 'ipguard'?"),
    ("attack=[prune,nois]", "unknown attack 'nois'; did you mean 'noise'?"),
    ("attack=[prune,3]", "unknown attack '3'; known: adversarial, all"),
    ("data=digit", "unknown data 'digit'; did you mean 'digits'?"),
    ("data=null", "unknown data 'null'; known: cifar10, "),
    ("zoo.widht=1", "unknown config key 'zoo.widht'; did you mean 'zoo.width'"),
    ("method=ipguard method.epochs=2", "unknown config key 'method.epochs'; did you mean 'method.steps'"),
    ("method.stesp=2 method=ipguard", "unknown config key 'method.stesp'; did you mean 'method.steps'"),
    ("experiment=methods experiment.seed=1", "unknown config key 'experiment.seed'; did you mean 'experiment.seeds'"),
    (
        "attack=prune attack.noise.recipe.lr=1",
        "unknown config key 'attack.noise'; did you mean 'attack.prune'? known: attack.prune\n",
    ),
    ("zoo.source=resnet81", "unknown architecture 'resnet81'; did you mean 'resnet18'"),
    ("zoo.architectures=[resnet18,vgg13]", "unknown architecture 'vgg13'; did you mean 'vgg13_bn'"),
    (
        "evasion=[mean,jpeg]",
        "evasion=[mean,jpeg]: expected one choice; got 2; give one, or evasion=mean,jpeg with -m for one run each\n",
    ),
    ("method=[]", "method=[]: expected one choice; got 0; give one\n"),
    ("attack=[prune", "cannot read 'attack=[prune': expected key=value; a list is attack=[prune,noise]\n"),
    ("store=/tmp/a=b", f"cannot read 'store=/tmp/a=b': {QUOTED}store='/tmp/a=b'\"\n"),
    ("data=imagefolder data.root=/tmp/ü", f"cannot read 'data.root=/tmp/ü': {QUOTED}data.root='/tmp/ü'\"\n"),
    ("label=it's", f"cannot read \"label=it's\": {QUOTED}label='it\\'s'\"\n"),
    (
        "attack.noise.recipe.lr=1",
        "attack.noise.recipe.lr: attack.noise.recipe is a reference to ${zoo.tuning}; set",
    ),
    ("zoo.architectures=resnet18", "attack.source.variants (zoo.architectures unless set): expected a list, such as"),
    ("attack=[]", "attack: expected one family or more, such as attack=[source,prune]; got None"),
    ("attack=scratch zoo.architectures=[resnet18]", "attack: expected families of one suspect or more, or more zoo."),
    (
        "attack=prune attack.prune.variants=0.5",
        "attack.prune.variants: expected a list, such as [resnet18] or ['0.5']; got 0.5",
    ),
    ("attack=prune attack.prune.variants=[]", "attack.prune.variants: expected a list of one or more; got []"),
    (
        "attack=prune attack.prune.variants=['0.5',0.5]",
        "attack.prune.variants: expected a list that names each once; got ['0.5', '0.5']",
    ),
    (
        "attack=prune attack.prune.variants=['1.5']",
        "a variant of Prune: expected a share above 0 and below 1, such as 0.5; got '1.5'",
    ),
    ("attack=prune attack.prune.variants=[abc]", "a variant of Prune: expected a share above 0 and below 1, such as"),
    ("attack=noise attack.noise.variants=[abc]", "a variant of Noise: expected a number above 0; got 'abc'"),
    (
        "attack=adversarial attack.adversarial.variants=[2]",
        "a variant of Adversarial: expected a share above 0 and at most 1; got '2'",
    ),
    ("attack=finetune attack.finetune.variants=[FTL]", "unknown fine-tuning mode 'FTL'; did you mean 'FTLL'"),
    ("attack=distill attack.distill.variants=[vgg13]", "unknown architecture 'vgg13'; did you mean 'vgg13_bn'"),
    ("attack=knockoff attack.knockoff.variants=[18]", "unknown architecture '18'; known: "),
    (
        "method=metafinger surrogates=augmented surrogates.copies=[abc]",
        "a variant of NoisedCopy: expected a number above 0; got 'abc'",
    ),
    ("zoo.width=wide", "zoo.width: expected a number above 0; got 'wide'"),
    ("zoo.training.lr=fast", "lr of a recipe: expected a number above 0; got 'fast'"),
    ("attack=prune zoo.tuning.lr=0", "lr of a recipe: expected a number above 0; got 0"),
    ("zoo.training.lr=inf", "lr of a recipe: expected a number above 0; got inf"),
    ("zoo.training.epochs=0", "epochs of a recipe: expected a whole number from 1; got 0"),
    ("attack=prune zoo.tuning.epochs=1.5", "epochs of a recipe: expected a whole number from 1; got 1.5"),
    ("zoo.training.batch=0", "batch of a recipe: expected a whole number from 1; got 0"),
    ("zoo.training.momentum=1", "momentum of a recipe: expected a number from 0 to below 1; got 1"),
    ("zoo.training.weight_decay=-1", "weight_decay of a recipe: expected a number from 0; got -1"),
    ("method=freqgan method.order=relesed", "unknown FreqGAN.order 'relesed'; did you mean 'released'"),
    ("label=${keys}", "label: Interpolation key 'keys' not found; name a setting, as in ${method.name}"),
    ("queries=0", "queries: expected a whole number from 1; got 0"),
    ("queries=true", "queries: expected a whole number from 1; got True"),
    ("zoo.width=true", "zoo.width: expected a number above 0; got True"),
    ("jobs=0", "jobs: expected a whole number from 1; got 0"),
    ("device=tpu9", "unknown device 'tpu9'"),
    ("precision=float23", "unknown precision 'float23'; did you mean 'float32'"),
]
SENSELESS = [
    ("-m --cfg job", "--cfg shows the configuration of one run; leave out -m, or --cfg"),
    (
        "hydra.searchpath=[file:///nowhere]",
        "hydra.searchpath: expected folders that there are, such as [file:///home/me/conf]; got 'file:///nowhere'",
    ),
    ("~experiment attack=prune,noise zoo.widht=1", "unknown config key 'zoo.widht'; did you mean 'zoo.width'"),
    ("attack=prune,noise", "attack=prune,noise is a sweep: add -m for one run each, or write attack=[prune,noise]"),
    ("method=akh,random", "method=akh,random is a sweep: add -m for one run each\n"),
    ("seed=0,1", "seed=0,1 is a sweep: add -m for one run each\n"),
    ("gates.spared=a,b", "gates.spared=a,b is a sweep: add -m for one run each, or write gates.spared=[a,b] for a"),
]


def in_one_line(error, answer):
    return f"{error}\n".startswith(answer) and "\n" not in str(error) and error.exit_code == 2


@pytest.mark.parametrize(("words", "answer"), BAD)
def test_bad_input_is_told_in_one_line(words, answer, tmp_path):
    with pytest.raises(UserError) as caught:
        bench = fb.open("method=random", *words.split(), f"store={tmp_path}")
        plan(bench)
        bench.build([])
    assert in_one_line(caught.value, answer)


@pytest.mark.parametrize(("words", "answer"), SENSELESS)
def test_a_command_line_that_makes_no_sense_is_told_in_one_line(words, answer):
    with pytest.raises(UserError) as caught:
        config.check(["method=random", *words.split()])
    assert in_one_line(caught.value, answer)


def test_bad_input_of_the_command_line_ends_in_its_line_and_exit_code_2(tmp_path):
    # Each is found later than the one before.
    found = ("zoo.widht=1", "attack=prune,noise", "zoo.source=resnet81", "device=tpu9")
    cases = [(["method=random", words], answer) for words, answer in (*BAD, *SENSELESS) if words in found]
    assert len(cases) == len(found)
    refuse(tmp_path / "store", tmp_path / "run", cases)


def test_a_sweep_and_its_report(built, tmp_path):
    store = built[0]
    words = [*TINY, f"store={store}", f"hydra.sweep.dir={tmp_path / 'sweep'}", FAMILIES]
    swept = finish(start(["run.py"], "-m", *words, "method=random,akh"))
    reported = finish(start(["-m", "fingerbench"], "report", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")))
    for output, folder in ((swept, tmp_path / "sweep" / "report"), (reported, tmp_path / "out")):
        assert "akh" in output and "random" in output and "peak MiB" in output and str(folder) in output
        table = pd.read_csv(folder / "comparison.csv")
        assert sorted(table["method"]) == ["akh", "random"]
        assert (table["cost_peak_mib"] > 50).all() and (table["cost_surrogates"] == 0).all()
        for name in ("comparison.md", "comparison.tex", "figures/comparison.png"):
            assert (folder / name).stat().st_size > 100


@pytest.mark.slow
def test_runs_of_one_method_are_told_apart_by_their_label(built, tmp_path):
    words = [*TINY, f"store={built[0]}", f"hydra.sweep.dir={tmp_path}", "attack=[source]", "method=random"]
    finish(start(["run.py"], "-m", *words, "label='${queries} queries'", "queries=5,10"))
    table = pd.read_csv(tmp_path / "report" / "comparison.csv").set_index("method")
    assert table["queries"].to_dict() == {"5 queries": 5, "10 queries": 10}


@pytest.mark.slow
def test_a_gan_is_shown_and_its_fid_is_a_cost_of_its_own(built, tmp_path):
    store, folder = tmp_path / "store", tmp_path / "run"
    shutil.copytree(built[0], store)
    few = ["gan.steps=3", "method.epochs=2", "method.pool=1"]
    run(store, folder, "method=naturalfinger", *few, "attack=[source]")
    metrics, manifest = (json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "manifest"))
    assert metrics["gan"]["name"] == "sagan" and metrics["gan"]["fid"] > 0 and "seconds" not in metrics["gan"]
    kept = manifest["store"]
    assert all((store / kind / kept[kind] / "record.json").is_file() for kind in ("gan", "fid", "fingerprint"))
    assert manifest["seconds"]["made"].keys() == {"gan", "fid", "fingerprint", "model"} == manifest["peak_mib"].keys()
    assert (folder / "figures" / "gan.png").stat().st_size > 1000
    gates, models = pd.read_csv(folder / "gates.csv"), pd.read_csv(folder / "models.csv").set_index("name")
    learnt = gates[gates["gate"] == "learnt"].set_index("suspect")
    assert set(learnt.index) == {"source", *kept["surrogates"]} and len(learnt) == 5
    assert learnt["value"].tolist() == pytest.approx(models.accuracy[learnt.index].tolist())


@pytest.mark.slow
def test_metafinger_learns_from_augmented_surrogates(built, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(built[0], store)
    plan = [word for word in TINY if not word.startswith("surrogates.")]
    plan += ["surrogates=augmented", "surrogates.positives=[1,3,5]", "surrogates.copies=[3]"]
    plan += ["surrogates.scratch=[resnet18,vgg13_bn,resnet18]", "method=metafinger", "method.images=30", FAMILIES]
    output = run(store, tmp_path / "run", *plan, tiny=False)
    assert "0 of 1 fingerprints" in output and "making" in output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    surrogates, suspects = manifest["store"]["surrogates"], manifest["store"]["suspects"]
    negatives = [f"surrogate/negative/{name}" for name in ("0-resnet18", "1-vgg13_bn", "2-resnet18")]
    expected = ["source", *(f"surrogate/positive/copy-{i}-{a}" for i, a in enumerate("135"))]
    expected += [name for base in negatives for name in (base, f"{base}/copy-0-3")]
    assert list(surrogates) == expected
    assert set(surrogates.values()) & set(suspects.values()) == {suspects["source"]}
    models = pd.read_csv(tmp_path / "run" / "models.csv").set_index("name")
    assert models.parent["surrogate/negative/1-vgg13_bn/copy-0-3"] == surrogates["surrogate/negative/1-vgg13_bn"]
    assert models.parent["surrogate/positive/copy-0-1"] == suspects["source"]
    scores = pd.read_csv(tmp_path / "run" / "scores.csv").set_index("suspect").score
    assert scores["source"] == 1.0 > scores["mirror/source"]
