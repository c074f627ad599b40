"""What an event log and a page bear after years: small events, and links to the rest."""

import base64
import io
import re
from datetime import timedelta
from pathlib import Path

import dagster as dg
import numpy as np
from dagster_shared.serdes import serialize_value
from PIL import Image

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment
from mnist_pipeline.files.pictures import preview
from mnist_pipeline.history import prune_runs
from mnist_pipeline.ml.plots import label_counts
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.task.examples import SPEC, TINY

MOST_BYTES = 15_000
PICTURE = re.compile(r"!\[[^]]+\]\(data:image/webp;base64,([^)]*)\)")


def test_no_materialization_weighs_more_than_15_kb(environment, instance, small_dataset, tmp_path):
    """Of a training that finds improbable labels, a candidate that fixes and breaks images, inputs that drifted."""
    inbox = tmp_path / "in"
    inbox.mkdir()
    np.save(inbox / "a.npy", np.roll(small_dataset.test.images, 3, axis=2))
    for number in range(200):
        name = f"{number}{'with-a-long-name' * 12}"
        (inbox / f"{name}.png").write_bytes(b"broken")
        (inbox / f".{name}.png").write_bytes(b"hidden")
    labelled = Path(environment.storage_root) / "labelled" / SPEC.class_names[0]
    labelled.mkdir(parents=True)
    for position in range(12):  # of other classes
        Image.fromarray(small_dataset.train.images[position]).save(labelled / f"{position}.png")
    pipeline = Pipeline(environment.model_copy(update={"prediction_input": str(inbox)}), instance)
    pipeline.run(digit_classifier={**TINY, "epochs": 6})
    result = pipeline.run(digit_classifier={**TINY, "epochs": 6, "seed": 3})
    assert "data:image/webp" in str(metadata(result, "production_digit_classifier").get("fixed_and_broken"))
    assert metadata(result, "batch_digit_predictions")["drifted_statistics"] >= 1
    sizes: dict[str, int] = {}
    for asset in (event.materialization.asset_key for event in result.get_asset_materialization_events()):
        for record in instance.fetch_materializations(asset, limit=10).records:
            size = len(serialize_value(record.event_log_entry))
            sizes[asset.to_user_string()] = max(size, sizes.get(asset.to_user_string(), 0))
    assert len(sizes) == 7
    assert {asset: size for asset, size in sizes.items() if size > MOST_BYTES} == {}


def test_pictures_are_small_and_still_seen(pipeline):
    result = pipeline.run()
    pictures = 0
    for event in result.get_asset_materialization_events():
        for value in event.materialization.metadata.values():
            if isinstance(value, dg.MarkdownMetadataValue) and (found := PICTURE.fullmatch(value.value or "")):
                with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
                    assert picture.width >= 200
                pictures += 1
    assert pictures >= 6
    # What was left out of the event log is in the card.
    card = Path(metadata(result, "model_evaluation")["card"]).read_text()
    for told in (
        "Surest mistakes",
        "calibration, and error against coverage",
        "accuracy on each slice",
        "learning curves",
    ):
        assert told in card


def test_a_preview_is_as_large_as_its_bytes_allow():
    png = label_counts(range(100, 100 + SPEC.classes), SPEC)
    sizes = []
    for most in (20_000, 3_500, 1_500):
        content = preview(png, most)
        assert len(content) <= most
        with Image.open(io.BytesIO(content)) as picture, Image.open(io.BytesIO(png)) as original:
            assert picture.format == "WEBP"
            assert abs(picture.width / picture.height - original.width / original.height) < 0.02
            sizes.append(picture.width)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_the_pages_of_assets_link_to_the_service():
    key = dg.AssetKey("model_evaluation")
    for url, expected in (("https://digits.example.com/", "https://digits.example.com/models"), ("", None)):
        definitions = build_definitions(Environment.read({"SERVICE_URL": url}))
        told = definitions.resolve_asset_graph().get(key).metadata.get("cards of versions")
        assert (told.value if told else None) == expected


def test_runs_are_pruned_but_for_the_last_events_of_each_asset(pipeline, instance):
    first, second = pipeline.run(), pipeline.run()
    assert list(prune_runs(instance, timedelta(days=1))) == []
    again = pipeline.run("raw_mnist_data")
    assert list(prune_runs(instance, timedelta(0))) == [first.run_id]
    assert set(instance.get_run_ids()) == {second.run_id, again.run_id}
    assert instance.all_logs(first.run_id) == []
    last = {
        key.to_user_string(): instance.get_latest_materialization_event(key).run_id
        for key in instance.get_asset_keys()
        if instance.get_latest_materialization_event(key)
    }
    assert last.pop("raw_mnist_data") == again.run_id
    assert set(last.values()) == {second.run_id}
    assert len(instance.fetch_materializations(dg.AssetKey("digit_classifier"), limit=10).records) == 1


def test_what_an_asset_was_made_from_stays_and_event_numbers_are_not_used_again(pipeline, tmp_path):
    """New labels are counted from there; and cursors of sensors are ahead of nothing."""
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        pipeline.instance = instance
        pipeline.run("raw_mnist_data")
        made_from = pipeline.run("processed_mnist_data")
        trained = pipeline.run("digit_classifier")
        newer = pipeline.run("processed_mnist_data")
        failed = pipeline.run("digit_classifier", digit_classifier={**TINY, "trial": "none"}, raise_on_error=False)
        assert not failed.success
        highest = instance.event_log_storage.get_maximum_record_id() or 0
        assert list(prune_runs(instance, timedelta(0))) == []
        pipeline.run("processed_mnist_data")
        assert list(prune_runs(instance, timedelta(0))) == [failed.run_id, newer.run_id]
        assert {made_from.run_id, trained.run_id} <= set(instance.get_run_ids())
        assert (instance.event_log_storage.get_maximum_record_id() or 0) > highest
