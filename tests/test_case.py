"""A case against a suspect of one's own: the answers of a model get the score that it has as a suspect of the run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf
from PIL import Image

import fingerbench as fb
from fingerbench import config
from fingerbench.__main__ import main
from fingerbench.errors import UserError
from fingerbench.evaluate import metrics
from fingerbench.evaluate.case import Case, Verdict, _names, _restore, read_answers
from fingerbench.fingerprints import write_fingerprint
from fingerbench.ops import predict
from fingerbench.records import Fingerprint
from methods.metav import MetaV
from methods.random import RandomImages


@pytest.fixture(scope="module")
def suspects(built):
    bench = fb.open(*TINY, f"store={built[0]}", "method=random", "attack=[source,finetune,distill]")
    return {name: bench.model(name) for name in bench.models}


@pytest.fixture
def copy(built, tmp_path):
    """The folder of a run, to be changed."""
    return Path(shutil.copytree(built[1], tmp_path / "run"))


def test_every_suspect_of_a_run_gets_its_score(built, suspects):
    case = fb.case(built[1])
    assert torch.equal(case.queries * 255, (case.queries * 255).round()) and len(case.queries) == 20
    expected = pd.read_csv(built[1] / "scores.csv").set_index("suspect")
    verdicts = {name: case.verdict(predict(model, case.queries).argmax(1)) for name, model in suspects.items()}
    assert {name: verdict.score for name, verdict in verdicts.items()} == expected["score_8bit"].to_dict()
    negatives = expected["score_8bit"][~expected["pirated"]]
    source, mirror = verdicts["source"], verdicts["mirror/source"]
    constants = [case.verdict([label] * 20).score for label in range(10)]
    assert source.constant == max(constants) > 0
    assert source.score == 1 and sorted(source.independent) == sorted(negatives) and len(source.stolen) == 7
    assert mirror.as_high == (negatives >= mirror.score).sum() and mirror.origins == (max(negatives),)
    assert source.p == 0.5 and mirror.p == 1  # all mirrors descend from one network


def test_images_are_asked_and_a_table_is_answered(built, suspects, tmp_path, capsys):
    folder, answers = tmp_path / "queries", tmp_path / "queries" / "answers.csv"
    assert main(["queries", str(built[1]), "--out", str(folder)]) == 0
    table = pd.read_csv(answers)
    assert [name[:3] for name in table["query"]] == [f"{i:02}-" for i in range(20)] and table["label"].isna().all()
    images = [torch.from_numpy(np.array(Image.open(folder / name))) for name in table["query"]]
    seen = torch.stack(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(seen, fb.case(built[1]).queries, rtol=0, atol=1e-7)
    table["label"] = predict(suspects["distill/resnet18"], seen).argmax(1).tolist()
    table.sample(frac=1, random_state=0).to_csv(answers, index=False)
    capsys.readouterr()
    assert main(["verdict", str(built[1]), str(answers), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    scores = pd.read_csv(built[1] / "scores.csv").set_index("suspect")
    assert said["score"] == scores.score_8bit["distill/resnet18"] and said["queries"] == 20
    assert main(["verdict", str(built[1]), str(answers)]) == 0
    assert f"random: score {said['score']:.5g} on 20 queries" in capsys.readouterr().out
    assert main(["queries", str(built[1]), "--out", str(folder)]) == 2  # what was filled in stays
    assert pd.read_csv(answers)["label"].notna().all()
    table["label"], control = predict(suspects["mirror/source"], seen).argmax(1).tolist(), tmp_path / "control.csv"
    table.to_csv(control, index=False)
    capsys.readouterr()
    behind = f"hydra.searchpath=[file://{tmp_path}]"
    assert main(["verdict", str(built[1]), str(answers), "--json", "--controls", str(control), behind]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["controls"] == [scores.score_8bit["mirror/source"]] and known["score"] == said["score"]
    assert known["p"] == (1 if known["controls"][0] >= said["score"] else 0.5)
    for given in ([control, answers], [answers, "--controls", control]):
        assert main(["verdict", str(built[1]), str(answers), "--controls", *map(str, given)]) == 2
        assert "--controls: expected the answers of one model a file, the suspect's not" in capsys.readouterr().err


def test_a_verdict_counts_those_that_score_as_high():
    alone, stolen = (0.1, 0.6, 0.7, 0.2), (0.5, 0.6, 0.9)
    verdict = Verdict("ipguard", 100, 0.6, alone, stolen, origins=(0.7, 0.1, 0.2), constant=0.3)
    assert str(verdict).startswith("ipguard: score 0.6 on 100 queries; who always says the same class has up to 0.3\n")
    assert (verdict.as_high, verdict.lower, verdict.p) == (2, 1, 0.5)
    assert "2 of 4 independent suspects score as high; the highest 0.7\n1 of the 3 networks they" in str(verdict)
    lowest = Verdict("ipguard", 100, 0.9, alone, (), verdict.origins, None)
    assert lowest.p == 0.25 and "0 of the 3 networks they descend from have one that does\n" in str(lowest)
    assert str(lowest).endswith("if it is like those of the run; 3 cannot say less")
    assert Verdict("ipguard", 100, 0.9, (), (), (), None).p == 1
    assert Verdict("ipguard", 100, 0.9, (), (), (), None, same_half=(0.3,) * 9).p == 0.1, "the one kind that there is"


def test_networks_of_the_sources_half_are_a_kind_of_their_own():
    lone = Verdict("ipguard", 100, 0.9, (0.1, 0.2), (), origins=(0.1, 0.2, 0.3, 0.4), constant=None)
    assert lone.p == 0.2 and "\nnone of them saw the source's images; one that did " in str(lone)
    cleared = replace(lone, same_half=(0.95, 0.3, 0.2))
    assert cleared.p == 0.5 and "\n1 of the 3 that saw the source's half of the images do\n" in str(cleared)
    few = replace(lone, same_half=(0.3, 0.2))
    assert few.p == pytest.approx(1 / 3) and str(few).endswith("; 2 cannot say less")
    many = replace(lone, same_half=(0.3,) * 9)
    assert many.p == 0.2 and str(many).endswith("; 4 cannot say less")
    assert replace(cleared, controls=(0.1,) * 9).p == 0.1


def test_what_a_given_source_saw_is_not_known(copy):
    lone = Verdict("ipguard", 100, 0.9, (0.1, 0.2), (), origins=(0.1, 0.2), constant=None, given=True)
    unknown = "; what else the given source saw is not known here\n"
    assert "\nnone was trained on half A; one that was may score like a thief: " in str(lone) and unknown in str(lone)
    assert "saw the source's" not in str(lone)
    assert f"\n1 of the 2 that were trained on half A do{unknown}" in str(replace(lone, same_half=(0.95, 0.3)))
    manifest = json.loads((copy / "manifest.json").read_text())
    assert not fb.case(copy).verdict([1] * 20).given
    manifest["config"]["zoo"]["weights"] = "mine.safetensors"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert unknown in str(fb.case(copy).verdict([1] * 20))


def test_the_kinds_of_independent_networks_come_from_the_run():
    case, answers = outputs_case(), [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    frame = case.scores
    rows = frame.iloc[[1]].assign(suspect="same-half/vgg", score_8bit=0.3, mirror_of=None)
    verdict = replace(case, scores=pd.concat([frame, rows], ignore_index=True)).verdict(answers)
    assert (verdict.origins, verdict.same_half, verdict.independent) == ((0.2,), (0.3,), (0.2, 0.3))
    assert case.verdict(answers).same_half == ()


def test_controls_take_the_place_of_the_zoo_in_p():
    verdict = Verdict("ipguard", 100, 0.6, (0.1,), (0.5,), (0.1,), None, controls=(0.7, 0.2, 0.3, 0.1))
    assert verdict.p == 0.4 and "\n1 of 4 controls score as high; the highest 0.7\np = 0.4: " in str(verdict)
    assert str(verdict).endswith("if it is like the controls")
    lowest = replace(verdict, score=0.9)
    assert lowest.p == 0.2 and str(lowest).endswith("if it is like the controls; 4 cannot say less")


def test_what_descends_from_one_network_has_one_origin(built):
    scores = fb.case(built[1]).scores
    assert set(metrics.origins(scores)) == {"mirror"}
    rows = [("scratch/vgg", False, "vgg", None), ("scratch-distill/vgg", False, "vgg", None), ("a", True, None, None)]
    rows += [("mirror/source", False, None, "source"), ("mirror/prune/0.1", False, "0.1", "prune/0.1")]
    rows += [("same-half/vgg", False, "vgg", None)]  # of the other half
    frame = pd.DataFrame(rows, columns=["suspect", "pirated", "variant", "mirror_of"])
    expected = {0: "scratch/vgg", 1: "scratch/vgg", 3: "mirror", 4: "mirror", 5: "same-half/vgg"}
    assert metrics.origins(frame).to_dict() == expected


def outputs_case(outputs=3, **state):
    method = config.build(config.compose(["method=metav"]).method)
    random = torch.Generator().manual_seed(0)
    shapes = {"hidden_weight": (4, 2 * outputs), "hidden_bias": (4,), "out_weight": (2, 4), "out_bias": (2,)}
    verifier = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    scores = pd.DataFrame({"method": "metav", "pirated": [True, False], "score_8bit": [0.9, 0.2]})
    scores = scores.assign(suspect=["source", "mirror/source"], variant=None, mirror_of=[None, "source"])
    return Case(method, Fingerprint(torch.rand(2, 3, 16, 16, generator=random), verifier | state), scores, outputs)


def test_scores_that_runs_of_before_rounded_tie_with_those_of_now():
    method = config.build(config.compose(["method=akh"]).method)
    fingerprint = Fingerprint(torch.rand(3, 3, 16, 16), {"labels": torch.tensor([0, 1, 2])})
    for stored in (2 / 3, round(2 / 3, 12)):
        scores = pd.DataFrame({"method": "akh", "pirated": [True, False], "score_8bit": [1.0, stored]})
        scores = scores.assign(suspect=["source", "mirror/source"], variant=None, mirror_of=[None, "source"])
        assert Case(method, fingerprint, scores, 10).verdict([0, 1, 1]).as_high == 1


def test_a_method_with_outputs_takes_probabilities():
    case, answers = outputs_case(labels=torch.tensor([0, 1])), [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    expected = case.method.similarity(case.fingerprint, torch.tensor(answers))
    assert case.verdict(answers).score == pytest.approx(expected) and 0 < expected < 1
    weights = torch.tensor(answers, requires_grad=True)
    for same in (weights, list(weights), [torch.tensor(row) for row in answers], np.array(answers)):
        assert case.verdict(same).score == pytest.approx(expected)
    assert case.verdict(answers).constant == max(case.verdict(torch.eye(3)[[i, i]]).score for i in range(3))
    with pytest.raises(UserError, match=r"the shape \(2, 3\), what the API says, not a label alone, of each query"):
        case.verdict([0, 1])
    for odd in ([7, 2, 1], [0.5, 0.6, -0.1], [0.35, 0.1, 0.05], [1, 1, 1]):
        with pytest.raises(UserError, match=r"^answers\[1\]: expected probabilities that sum to 1 .*; got [\d., -]+$"):
            case.verdict([answers[1], odd])
    with pytest.raises(UserError, match=r"^controls\[1\]\[0\]: expected probabilities .*; got 7, 2, 1$"):
        case.verdict(answers, [answers[::-1], [[7, 2, 1], answers[1]]])
    with pytest.raises(UserError, match=r"^answers\[0\]: expected finite numbers; got nan, 0.2, 0.1$"):
        case.verdict([[float("nan"), 0.2, 0.1], answers[1]])
    assert case.verdict([[0.33, 0.33, 0.33], [1, 0, 0]]).score  # rounded
    assert outputs_case(answers=torch.zeros(2, 3)).verdict([[7, 2, 1], [-3, 1, 0.1]]).constant is None  # a regression


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([1] * 19, r"answers: expected the shape \(20,\), the label of each query; got \(19,\)"),
        ([[1] * 10] * 20, r"expected the shape \(20,\)"),
        ([1.5] * 20, r"answers\[0\]: expected labels, whole numbers from 0 to 9; got 1.5"),
        ([1] * 19 + [10], r"^answers\[19\]: expected labels, whole numbers from 0 to 9; got 10$"),
        ([1j] * 20, "answers: expected numbers; got 'torch.complex128'"),
        ([True] * 20, "answers: expected numbers; got 'torch.bool'"),
        ([-1] * 20, "from 0"),
        ([float("nan")] * 20, r"answers\[0\]: expected finite numbers"),
        (["cat"] * 20, "answers: expected a number, or a row of them, for each query"),
        ([[1], [1, 2]] * 10, "answers: expected a number, or a row of them, for each query"),
    ],
)
def test_what_is_no_answer_is_said_in_one_line(built, answers, said):
    with pytest.raises(UserError, match=said):
        fb.case(built[1]).verdict(answers)


@pytest.fixture(scope="module")
def names(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "queries"
    assert main(["queries", str(built[1]), "--out", str(folder)]) == 0
    return pd.read_csv(folder / "answers.csv")["query"].tolist()


def filled(names, head="query,label", answer=",1"):
    return "\n".join([head, *(f"{name}{answer}" for name in names), ""])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: filled(names[1:]), "no row for 1 of 20 queries, such as {first}; fill them in"),
        (lambda names: filled(["00-0.png", *names[1:]]), "no row for 1 of 20 queries, such as {first}"),
        (lambda names: filled(f"{i}.png" for i in range(20)), "no row for 20 of 20 queries, such as {first}; are they"),
        (lambda names: filled([*names, names[0]]), "expected one row a query; got 'several for {first}'"),
        (lambda names: filled(names, answer=","), "{first}: expected a number in label; got nothing"),
        (
            lambda names: filled(names, answer=",cat"),
            "{first}: expected a number in label; got cat; classes are numbers",
        ),
        (
            lambda names: filled(names[:3]) + filled(names[3:], "", ",10").lstrip(),
            "answers.csv: {fourth}: expected labels, whole numbers from 0 to 9; got 10\n",
        ),
        (lambda names: filled(names, answer=",inf"), "answers.csv: {first}: expected finite numbers; got inf\n"),
        (lambda names: filled(names, answer=f",{'cat' * 99}"), "catca...; classes are numbers"),
        (lambda names: filled(names, "query,answer"), "expected columns label; got 'answer'"),
        (lambda names: "", "no table (No columns to parse from file)"),
        (lambda names: filled(names, "image,label"), "no table (no 'query')"),
    ],
)
def test_a_table_that_is_not_filled_in_is_refused(built, names, tmp_path, capsys, change, said):
    (tmp_path / "answers.csv").write_text(change(names))
    assert main(["verdict", str(built[1]), str(tmp_path / "answers.csv")]) == 2
    assert said.format(first=names[0], fourth=names[3]) in capsys.readouterr().err
    assert main(["verdict", str(built[1]), str(tmp_path / "none.csv")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_table_of_a_spreadsheet_may_have_tabs_but_no_encoding_of_its_own(built, names, tmp_path, capsys):
    path, text = tmp_path / "answers.csv", filled(names)
    path.write_text(text)
    assert main(["verdict", str(built[1]), str(path), "--json"]) == 0
    expected = capsys.readouterr().out
    path.write_text(text.replace(",", "\t"))
    assert main(["verdict", str(built[1]), str(path), "--json"]) == 0
    assert capsys.readouterr().out == expected
    path.write_text(text, encoding="utf-16")
    assert main(["verdict", str(built[1]), str(path)]) == 2
    assert "answers.csv: expected UTF-8, got another encoding; save it as CSV in UTF-8" in capsys.readouterr().err


def test_a_method_that_is_not_here_is_asked_for_by_its_folder(built, tmp_path, capsys):
    run = shutil.copytree(built[1], tmp_path / "run")
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text.replace('"name": "random"', '"name": "mine"'))
    assert main(["queries", str(run), "--out", str(tmp_path / "out")]) == 2
    said = "its method, mine, is not in conf/method; if it is of a folder of yours, add hydra.searchpath=[file://DIR]"
    assert said in capsys.readouterr().err


def test_one_model_under_two_names_is_warned_of(built, names, tmp_path, caplog):
    a, b, c, d = (tmp_path / f"{letter}.csv" for letter in "abcd")
    for path, answer in ((a, ",1"), (b, ",2"), (c, ",2.0"), (d, ",1")):
        path.write_text(filled(names, answer=answer))
    for said, controls in (("controls[0] and controls[1]", [b, c]), ("answers and controls[1]", [b, d])):
        caplog.clear()
        assert main(["verdict", str(built[1]), str(a), "--controls", *map(str, controls)]) == 0
        assert [record.message for record in caplog.records] == [
            f"{said} hold the same answers; if one model gave them, leave one out: p is too low",
            "answers: all 20 are the same; does the API see the images?",
        ]
    caplog.clear()
    fb.case(built[1]).verdict([1, 2] * 10, [[2] * 20, [3] * 20])
    assert not caplog.records


@pytest.mark.parametrize(
    ("head", "answer", "end"),
    [("query;label", ";1", ""), ("\ufeffquery, Label ", ", 1.0", ""), ("query,label,note", ",1,cat", "\n,,\n")],
)
def test_a_table_that_a_spreadsheet_wrote_is_read(built, names, tmp_path, capsys, head, answer, end):
    (tmp_path / "answers.csv").write_text(filled(names, head, answer) + end)
    assert main(["verdict", str(built[1]), str(tmp_path / "answers.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == fb.case(built[1]).verdict([1] * 20).score


def test_a_run_names_no_code(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"]["method"] |= {"_target_": "os.system", "command": "false"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert type(fb.case(copy).method).__name__ == "RandomImages"
    for name, said in (("../evasion/jpeg", "expected the name of a file in conf/method"), ("nobody", "nobody")):
        manifest["config"]["method"]["name"] = name
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=said):
            fb.case(copy)
    for setting in ({"_target_": "os.system", "command": "false"}, "${oc.env:HOME}", [{"_target_": "os.abort"}], "x"):
        manifest["config"]["method"] = {"name": "metav", "init": setting}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(
            UserError, match=r"manifest\.json: (init: expected numbers and texts|unknown MetaV\.init 'x')"
        ):
            fb.case(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"outputs": 2**63}))
    with pytest.raises(UserError, match=r"expected the number of outputs, .*; got 9223372036854775808"):
        fb.case(copy)
    del manifest["config"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: does not say which method it ran"):
        fb.case(copy)


def test_a_method_that_changed_since_the_run_is_refused_or_warned_of(copy, monkeypatch, caplog):
    manifest = json.loads((copy / "manifest.json").read_text())
    (cls,) = manifest["method"]["code"]
    fb.case(copy)
    assert not caplog.text
    manifest["method"]["code"][cls] = "0"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    fb.case(copy)
    assert "the code of random is not what it was; if it scores otherwise now, run it again" in caplog.text
    monkeypatch.setattr(RandomImages, "version", 7, raising=False)
    with pytest.raises(UserError, match=r"manifest\.json: random has version 7 here, the run was made with None; run"):
        fb.case(copy)
    del manifest["method"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert fb.case(copy).method == RandomImages()


def test_the_settings_of_the_run_are_those_of_the_method(copy, monkeypatch):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"]["method"] = {"name": "metav", "_target_": "x", "features": "logits", "unheard": 1}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    case, shipped = fb.case(copy), config.build(config.compose(["method=metav"]).method)
    assert shipped.features != "logits" and case.method == replace(shipped, features="logits")
    file = OmegaConf.masked_copy(config.compose(["method=metav"]).method, ["name", "_target_"])  # leaves its fields out
    monkeypatch.setattr(config, "compose", lambda _: OmegaConf.create({"method": file}))
    manifest["config"]["method"]["init"] = "train_images"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert fb.case(copy).method == MetaV(features="logits", init="train_images")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"the fingerprint is none of this method \(no 'hidden_weight'\)"):
        case.verdict(torch.full((20, 10), 0.1))


def test_settings_within_settings_are_those_of_the_run_too():
    node = OmegaConf.create({"filter": {"_target_": "mine.Blur", "side": 3}, "pairs": [[1, 2]]})
    _restore(node, {"filter": {"_target_": "os.system", "side": 5}, "pairs": [[3, 4], [5, 6]]})
    assert node == {"filter": {"_target_": "mine.Blur", "side": 5}, "pairs": [[3, 4], [5, 6]]}
    for stranger in ({"filter": {"side": {"_target_": "os.abort"}}}, {"pairs": [[{"_target_": "os.abort"}]]}):
        with pytest.raises(UserError, match="expected numbers and texts"):
            _restore(node, stranger)


def test_a_fingerprint_of_another_run_is_refused(copy, tmp_path):
    write_fingerprint(Fingerprint(torch.rand(3, 3, 16, 16), {}), copy / "fingerprint.safetensors")
    with pytest.raises(UserError, match=r"fingerprint\.safetensors: expected 20 queries; got 3"):
        fb.case(copy)
    with pytest.raises(UserError, match="none: no such folder; give folders of runs"):
        fb.case(tmp_path / "none")
    with pytest.raises(UserError, match=r"expected the folder of one run; got '1 below it; give one, such as .*run'"):
        fb.case(tmp_path)
    with pytest.raises(UserError, match=r"expected no words but hydra\.searchpath=\[\.\.\.\]; got 'method=akh'"):
        fb.case(copy, "method=akh")


def test_a_spreadsheet_where_a_comma_is_the_decimal_point(tmp_path):
    case, path = outputs_case(labels=torch.tensor([0, 1])), tmp_path / "answers.csv"
    rows = zip(_names(case), (["0,7", "0,2", "0,1"], ["0,1", "0,8", "0,1"]), strict=True)
    path.write_text("\r\n".join(["query;0;1;2", *(";".join([name, *cells]) for name, cells in rows)]))
    assert read_answers(case, path).tolist() == [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    path.write_text(path.read_text().replace("0,7", "70%"))
    with pytest.raises(UserError, match=r"expected a number in 0, 1, 2; got 70%, 0.2, 0.1; write 0.76, not 76%"):
        read_answers(case, path)


def test_a_run_that_is_not_done_says_how_to_go_on(copy, tmp_path, capsys):
    job = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps(job | {"state": "interrupted"}))
    assert main(["queries", str(copy), "--out", str(tmp_path / "ask")]) == 2
    assert f"its run is interrupted; python -m fingerbench status {copy} says why, and how" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["verdict", str(copy)])
    assert "the following arguments are required: ANSWERS\n" in capsys.readouterr().err


def test_a_verdict_says_which_gates_the_zoo_breaks(copy):
    rows = ["suspect,gate,value,limit,holds", "prune/0.9,kept,0.5,0.8,False", "source,learnt,0.9,0.3,True"]
    (copy / "gates.csv").write_text("\n".join(rows))
    broken = "gates: the zoo breaks kept of 1 suspect (prune/0.9 0.500 < 0.800)"
    verdict = fb.case(copy).verdict([1] * 20)
    assert verdict.zoo == broken and str(verdict).endswith(f"\n{broken}; so its models say less about others")
    for lines in (rows[::2], []):  # all hold; nobody looked
        (copy / "gates.csv").write_text("\n".join(lines)) if lines else (copy / "gates.csv").unlink()
        assert fb.case(copy).zoo == ""
    for damage in ("", "suspect,gate", rows[1], *(f"{rows[0]}\n{row}" for row in ("a,b,1,1,True", "a,kept,1,1,no"))):
        (copy / "gates.csv").write_text(damage)
        with pytest.raises(UserError, match=r"gates\.csv: (not the gates of a run|expected gates learnt, kept)"):
            fb.case(copy)


def test_what_cannot_be_compared_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "outputs"}))
    with pytest.raises(
        UserError, match=r"expected the number of outputs, as runs have it from now on: run its command"
    ):
        fb.case(copy)
    scores = (copy / "scores.csv").read_text()
    (copy / "scores.csv").write_text(scores.replace(",none,", ",jpeg,"))
    with pytest.raises(
        UserError, match="expected a run without evasion=, since the suspect has none of ours; got 'jpeg'"
    ):
        fb.case(copy)
