"""What only a store behind a network can do wrong."""

import socket

import pytest

from mnist_pipeline.stores import ModelStoreError, S3ModelStore


def test_a_bucket_that_is_not_there_is_an_error_and_not_an_empty_store(s3_bucket, s3_url):
    store = S3ModelStore(bucket="no-such-bucket", endpoint_url=s3_url)
    with pytest.raises(ModelStoreError, match="no-such-bucket"):
        store.versions()
    with pytest.raises(ModelStoreError, match="no-such-bucket"):
        store.production()


def test_no_credentials_is_an_error_that_says_so(s3_bucket, s3_url, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(ModelStoreError, match="credentials"):
        S3ModelStore(bucket=s3_bucket, endpoint_url=s3_url).versions()


def test_an_unreachable_server_is_an_error_that_names_it(s3_bucket):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    store = S3ModelStore(bucket=s3_bucket, endpoint_url=url, max_attempts=1, timeout_seconds=2)
    with pytest.raises(ModelStoreError, match=url):
        store.production()


def test_stores_with_different_prefixes_do_not_see_each_other(s3_bucket, s3_url):
    one, other = (S3ModelStore(bucket=s3_bucket, prefix=p, endpoint_url=s3_url) for p in ("a", "a/b"))
    other.create_object("x", b"1")
    assert list(one.list_objects("x")) == []
    assert list(other.list_objects()) == ["x"]
