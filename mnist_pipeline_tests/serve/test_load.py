"""Many clients, two services, a deployer: nothing is dropped, nothing is mixed up."""

import json

import pytest

from benchmarks.load import Answered, multipart_request, run
from benchmarks.serving import digit_files
from benchmarks.soak import RELOAD_SECONDS, soak
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline_tests.amounts import SOAK_SECONDS
from mnist_pipeline_tests.serve.test_predict import TEST


@pytest.mark.long
def test_two_services_answer_by_what_is_deployed_while_a_deployer_promotes(tmp_path):
    report = soak(tmp_path, seconds=SOAK_SECONDS)
    assert report.failures == report.wrong == 0
    assert report.answers > 62.5 * SOAK_SECONDS
    assert report.promotions >= 0.75 * SOAK_SECONDS
    assert report.versions >= 0.75 * SOAK_SECONDS
    assert report.latest < RELOAD_SECONDS + 3  # on a machine that is busy with other tests
    assert all(samples[-1] < samples[0] + 100 for samples in report.memory_mib)


def test_many_clients_get_their_own_answers(service, store):
    expected = Predictor.from_store(store).predict(TEST.images).argmax(1)
    requests = [multipart_request("/predict", file) for file in digit_files(300)]
    answers: list[Answered] = []
    result = run(int(service.url.rsplit(":", 1)[1]), requests, clients=32, seconds=2, answered=answers.append)
    assert result.failures == 0
    assert len(answers) == result.requests > 100
    labels = [json.loads(answer.body)["predictions"][0]["label"] for answer in answers]
    assert labels == [expected[answer.number] for answer in answers]
    assert service.metric("mnist_batch_images_sum") == result.requests
