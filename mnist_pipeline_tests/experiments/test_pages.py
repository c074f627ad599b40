"""Cards, comparisons and leaderboards: one file each, and every number in it is the store's."""

import json
import posixpath
import re
from html import unescape
from typing import Any

import pytest
from scipy import stats

from mnist_pipeline.__main__ import main
from mnist_pipeline.experiments.card import card, comparison_rows
from mnist_pipeline.experiments.comparing import compare_versions, comparison_page, paired_rows, score_rows
from mnist_pipeline.experiments.sweep import parse_sweep
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.experiments.trying import run_trial
from mnist_pipeline.stores import ModelStoreError, NothingDeployed
from mnist_pipeline.stores.evaluations import EVALUATION, kept_evaluation
from mnist_pipeline.stores.versions import CARD
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.task.examples import TINY

LARGEST = 500_000
GATE = {"accuracy_threshold": 0.3, "max_slice_regression": 1.0, "serve_check": "off"}


def train_one(pipeline: Pipeline, seed: int, **settings: Any):
    return pipeline.run(
        *("raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation"),
        "production_digit_classifier",
        digit_classifier=TINY | {"seed": seed} | settings,
        production_digit_classifier=GATE,
    )


def numbers_in(page: bytes) -> set[float]:
    """All numbers of a page that it marks as such."""
    return {float(unescape(found)) for found in re.findall(r'<data value="([^"]*)"', page.decode())}


def numbers_of(*contents: Any) -> set[float]:
    """All numbers in things as JSON has them."""
    found: set[float] = set()

    def walk(content: Any) -> None:
        if isinstance(content, dict):
            for value in content.values():
                walk(value)
        elif isinstance(content, list | tuple):
            for value in content:
                walk(value)
        elif isinstance(content, int | float) and not isinstance(content, bool):
            found.add(float(content))

    walk(contents)
    return found


def require_self_contained(page: bytes) -> None:
    text = page.decode()
    assert text.startswith("<!doctype html>")
    assert len(page) < LARGEST
    assert not re.search(r"<link|<iframe|@import|url\(", text)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
    assert "{{" not in text and "{%" not in text


def test_every_number_of_a_card_is_the_stores_and_it_follows_the_decisions(pipeline):
    first = train_one(pipeline, 0)
    store, name = pipeline.store, metadata(first, "digit_classifier")["model"]
    page, _ = store.read_object(f"{name}/{CARD}")
    require_self_contained(page)
    assert metadata(first, "digit_classifier")["card"] == f"{store.address}/{name}/{CARD}"
    second = train_one(pipeline, 1, epochs=3)
    newer = metadata(second, "digit_classifier")["model"]
    for version in (name, newer):
        page, _ = store.read_object(f"{version}/{CARD}")
        assert page == card(store, version)  # as it would be made now
        manifest, kept = store.manifest(version), kept_evaluation(store, version)
        assert kept
        decisions = list(store.decisions_about(version))
        recorded = numbers_of(
            manifest.model_dump(mode="json"),
            kept.model_dump(mode="json"),
            [comparison_rows(decision) for decision in decisions],
            len(manifest.training.history),
        )
        shown = numbers_in(page)
        accuracy, images = kept.evaluation.test.accuracy, kept.evaluation.test.images
        ends = stats.binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
        interval = {float(ends.low), float(ends.high)}
        assert shown - recorded <= interval <= shown
        assert accuracy in shown and manifest.training.best("validation_loss") in shown
        text = unescape(page.decode())
        assert manifest.weights_sha256 in text and manifest.onnx_sha256 in text
        assert all(record.digest in text for record in manifest.training.splits.values())
        assert all(decision.reason in text for decision in decisions)
        for package, release in manifest.training.provenance.packages.items():
            assert f"<dt>{package}</dt><dd>{release}</dd>" in text
    said = store.read_object(f"{newer}/{CARD}")[0].decode()
    store.read_object(posixpath.normpath(f"{newer}/../{name}/{CARD}"))
    assert f'<a data-version="{name}" href="../{name}/card.html">{name}</a>' in said


def test_a_card_is_made_again_by_command_and_after_a_rollback(pipeline, environment, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_ROOT", environment.storage_root)
    name = metadata(train_one(pipeline, 0), "digit_classifier")["model"]
    store = pipeline.store
    store.delete_object(f"{name}/{CARD}")
    assert main(["card", "deployed"]) == 0
    assert capsys.readouterr().out == f"{store.address}/{name}/{CARD}\n"
    assert store.read_object(f"{name}/{CARD}")[0] == card(store, name)
    forced = {"strategy": "force", "reason": "<script>alert(1)</script>", "serve_check": "off"}
    other = pipeline.run(
        *("digit_classifier", "model_evaluation", "production_digit_classifier"),
        digit_classifier=TINY | {"seed": 1},
        production_digit_classifier=forced,
    )
    newer = metadata(other, "digit_classifier")["model"]
    assert "<script>" not in (text := store.read_object(f"{newer}/{CARD}")[0].decode())
    assert "&lt;script&gt;alert(1)" in text
    store.rollback("it was better", "me")
    pipeline.run("production_digit_classifier", production_digit_classifier={"strategy": "observe"})
    assert "it was better" in store.read_object(f"{name}/{CARD}")[0].decode()


def test_versions_are_compared_as_the_gate_did(pipeline):
    names = [metadata(train_one(pipeline, seed), "digit_classifier")["model"] for seed in (0, 1)]
    store, decision = pipeline.store, pipeline.store.decisions()[0]
    found = compare_versions(store, names[1], names[0])
    assert (found.on, found.remark) == ("test", None)
    [gate] = decision.comparisons
    assert found.overall == gate
    assert (found.labels[0] == found.images.labels).mean() == decision.test_accuracy
    rows = {row["measure"]: row for row in score_rows(found)}
    accuracy = rows["accuracy on the test images"]
    assert (accuracy["first"], accuracy["second"]) == pytest.approx(
        (decision.test_accuracy, decision.incumbent_test_accuracy)
    )
    first, *slices = paired_rows(found)
    assert first["on"] == "all test images"
    assert len(slices) > 10
    page = comparison_page(found)
    require_self_contained(page)
    for link in re.findall('href="([^"]*)"', page.decode()):  # from where the page is kept
        store.read_object(posixpath.normpath(f"{names[1]}/compared/{link}"))
    assert float(gate.fixed) in numbers_in(page)
    settings = page.decode().split("Settings that differ")[1].split("</section>")[0]
    assert re.findall("<td>(.*?)</td>", settings) == ["seed", "1", "0"]
    back = compare_versions(store, names[0], names[1]).overall
    assert (back.fixed, back.broken) == (gate.broken, gate.fixed)


def test_trials_are_compared_on_validation_images(pipeline, tmp_path):
    name = metadata(train_one(pipeline, 0), "digit_classifier")["model"]
    store, sweeps = pipeline.store, Sweeps(pipeline.store)
    space = {"batch_size": {"choices": [16, 64]}}
    shared = {key: value for key, value in TINY.items() if key != "batch_size"}
    sweeps.begin(parse_sweep({"name": "s", "method": "grid", "settings": shared, "space": space}, ""))
    from mnist_pipeline.stores.datasets import load_splits

    manifest = store.manifest(name)
    splits = load_splits(store, manifest.training.splits, manifest.task)
    trial = run_trial(sweeps, "s/001-s0", splits, tmp_path, lambda _: lambda _: None, "run")
    found = compare_versions(store, "s/001-s0", "deployed")
    assert found.on == "validation"
    assert found.overall.images == manifest.training.splits["validation"].images
    ours = found.overall.test_accuracy - found.overall.regression
    assert ours == pytest.approx(trial.validation_accuracy)
    assert "not looked at to choose among trials" in comparison_page(found).decode()
    models, version = sweeps.models("s"), str(trial.version)
    assert kept_evaluation(models, version) is None
    page = card(models, version)
    require_self_contained(page)
    assert "It was not evaluated" in page.decode() and "as the trial s/001-s0" in page.decode()


def test_what_cannot_be_compared_says_why(pipeline, capsys, monkeypatch, environment, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_ROOT", environment.storage_root)
    store = pipeline.store
    with pytest.raises(NothingDeployed):
        compare_versions(store, "deployed", "deployed")
    names = [metadata(train_one(pipeline, seed), "digit_classifier")["model"] for seed in (0, 1)]
    with pytest.raises(ModelStoreError, match="is compared with itself"):
        compare_versions(store, names[0], names[0])
    page = tmp_path / "page.html"
    assert main(["compare", *names, "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert f"first:  {names[0]}\nsecond: {names[1]}\n" in said
    assert page.read_bytes() == store.read_object(f"{names[0]}/compared/{names[1]}.html")[0]
    for key in list(store.list_objects("data/")):
        store.delete_object(key)
    assert main(["compare", *names]) == 1
    assert "are not kept in" in capsys.readouterr().err
    for name in names:
        content = json.loads(store.read_object(f"{name}/manifest.json")[0])
        content["training"]["splits"] = {}
        store.put(f"{name}/manifest.json", json.dumps(content).encode())
    assert main(["compare", *names]) == 1
    assert "neither of both has kept its test images" in capsys.readouterr().err
    store.put(f"{names[0]}/{EVALUATION}", b"{}")
    assert main(["compare", *names]) == 1
    assert f"{EVALUATION} of {names[0]} is damaged" in capsys.readouterr().err


def test_a_history_of_other_code_is_no_reason_for_no_card(pipeline):
    name = metadata(train_one(pipeline, 0), "digit_classifier")["model"]
    store = pipeline.store
    content = json.loads(store.read_object(f"{name}/manifest.json")[0])
    for history, drawn in (
        ([epoch | {"new": 1} for epoch in content["training"]["history"]], True),
        ([{"epoch": 1}], False),
        ([{**content["training"]["history"][0], "validation_loss": None}], False),
    ):
        training = content["training"] | {"history": history}
        store.put(f"{name}/manifest.json", json.dumps(content | {"training": training}).encode())
        assert ("learning curves" in card(store, name).decode()) is drawn
