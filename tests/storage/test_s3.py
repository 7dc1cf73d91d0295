"""Datasets in a bucket, of a server that speaks S3 on this machine."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import stamina
import torch
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

import respipe
from respipe.cli import app
from respipe.errors import StorageError
from tests.small_pages import convert_small


@pytest.fixture(scope="module")
def server() -> Generator[str, None, None]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[str, None, None]:
    """The URL of a new bucket, which fsspec reaches by what the environment says, as a user's would be."""
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "NO_PROXY": "127.0.0.1",
        "RESPIPE_CACHE_DIR": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client: Any = boto3.client("s3")
    client.create_bucket(Bucket="data")
    with stamina.set_testing(True, attempts=3):
        yield "s3://data"
    s3fs.S3FileSystem.clear_instance_cache()
    for found in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=found["Key"])
    client.delete_bucket(Bucket="data")
    client.close()


def test_a_bucket_is_converted_to_indexed_and_trained_from(bucket: str, jpeg_folder: Path, tmp_path: Path) -> None:
    system = s3fs.S3FileSystem()
    system.put(str(jpeg_folder), f"{bucket}/images", recursive=True)
    target, local = f"{bucket}/made", tmp_path / "local"
    convert_small(jpeg_folder, local, shards=3)
    for part in range(3):
        convert_small(f"{bucket}/images", target, shards=3, part=(part, 3))
    names = sorted(file.name for file in local.iterdir())
    assert sorted(path.rpartition("/")[2] for path in system.find(target)) == names
    assert all(system.cat_file(f"{target}/{name}") == (local / name).read_bytes() for name in names)

    system.rm_file(f"{target}/index.json")
    with pytest.raises(StorageError, match=r"s3://data/made/index\.json cannot be read: FileNotFoundError"):
        respipe.inspect(target)
    result = CliRunner().invoke(app, ["index", target])
    assert "18 samples in 3 files" in result.stdout, result.output
    assert respipe.verify(target, num_workers=0).sound

    options: dict[str, Any] = {"batch_size": 4, "backend": "reference", "num_threads": 1}
    schedule = respipe.schedules.MixSize("S28", batch_multiple=1)
    with (
        respipe.Loader(target, schedule, cache_dir=tmp_path / "nvme", cache_bytes=1e6, **options) as remote,
        respipe.Loader(local, schedule, **options) as near,
    ):
        for (images, labels), (others, of_others) in zip(remote, near, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, of_others)
        state = remote.state_dict()
        assert state == near.state_dict()
    with pytest.raises(StorageError, match="`cache_bytes` must leave more than"):
        respipe.Loader(target, schedule, cache_dir=tmp_path / "small", cache_bytes=1000, **options)
    with respipe.Loader(target, schedule, cache_dir=tmp_path / "nvme", **options) as again:
        again.load_state_dict(state)


def test_a_bucket_that_is_missing_is_named(bucket: str) -> None:
    with pytest.raises(StorageError, match=r"s3://nowhere/made/index\.json cannot be read: FileNotFoundError"):
        respipe.inspect("s3://nowhere/made")
