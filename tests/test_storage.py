from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boto3.s3.transfer import TransferConfig
from servers import S3Server

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data import open_prepared, prepare
from t2i_ray.encoders import embeddings
from t2i_ray.launch.cluster import PLAIN_CHECKSUMS, ray_storage
from t2i_ray.storage import (
    MissingKey,
    PatientStore,
    StorageError,
    Store,
    check_writable,
    open_key,
    open_store,
)
from t2i_ray.storage.s3 import S3Store, _client
from t2i_ray.storage.scratch import scratch


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials or servers of whoever runs the tests; a cache of the test's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("T2I_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setattr("t2i_ray.storage.s3._ATTEMPTS", 2)
    _client.cache_clear()  # a client keeps the credentials it was made with
    yield
    _client.cache_clear()


@pytest.fixture
def s3_config(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> config.Storage:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return config.Storage(uri=f"s3://{s3.bucket}/{tmp_path.name}", endpoint=s3.endpoint)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(config.Storage(uri=str(tmp_path / "root")))
    return open_store(request.getfixturevalue("s3_config"))


# ------------------------------------------------------------------------ on either kind


def test_what_was_written_is_read(store: Store) -> None:
    store.write("a/b", b"one")
    assert store.read("a/b") == b"one"
    store.write("a/b", b"")
    assert store.read("a/b") == b""
    assert store.exists("a/b")
    assert not store.exists("a")
    for absent in ("a", "a/c", "a/b/c"):
        with pytest.raises(MissingKey, match=absent):
            store.read(absent)


def test_a_part_is_read(store: Store) -> None:
    store.write("a/b", bytes(range(100)))
    store.write("empty", b"")
    assert store.read_part("a/b", 10, 5) == bytes(range(10, 15))
    assert store.read_part("a/b", 98, 5) == bytes([98, 99])
    assert store.read_part("a/b", 100, 5) == store.read_part("a/b", 500, 5) == b""
    assert store.read_part("a/b", 7, 0) == store.read_part("empty", 0, 9) == b""
    for call in (store.stamp, lambda key: store.read_part(key, 0, 1)):
        for absent in ("a", "a/c"):
            with pytest.raises(MissingKey, match=absent):
                call(absent)


def test_a_key_is_opened_as_a_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_ray.storage.opened._AHEAD", 64)
    content = os.urandom(1000)
    store.write("a", content)
    file = open_key(store, "a")
    assert file.read(10) + file.read(10) == content[:20]
    assert file.seek(-100, os.SEEK_END) == 900
    assert file.read() == content[900:]
    assert file.read() == b""
    file.seek(300)
    assert file.read(200) == content[300:500]
    assert (file.tell(), file.seek(5000), file.read(1)) == (500, 5000, b"")
    with pytest.raises(MissingKey, match="absent"):
        open_key(store, "absent")


def test_only_the_first_creates(store: Store) -> None:
    assert store.create("run.json", b"first")
    assert not store.create("run.json", b"second")
    assert store.read("run.json") == b"first"
    assert store.list() == ["run.json"]


def test_one_of_many_creates(store: Store) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        if store.create("run.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("run.json") == str(won[0]).encode()


def test_list_and_delete_go_by_folders(store: Store) -> None:
    keys = ["a/x", "a/y/z", "ab", "ab/c" if "s3" in store.uri else "ac/c", "b"]
    for key in keys:
        store.write(key, b"")
    assert store.list() == sorted(keys)
    assert store.list("a") == store.list("a/") == ["a/x", "a/y/z"]
    assert store.list("b") == store.list("absent") == []
    store.delete("a")
    store.delete("b")
    store.delete("absent")
    assert store.list() == sorted(keys[2:4])


def test_stamps_tell_size_and_change(store: Store) -> None:
    store.write("a/x", b"one")
    store.write("a/y/z", b"")
    before = store.stamps()
    assert list(before) == store.list() == ["a/x", "a/y/z"]
    assert [stamp.size for stamp in before.values()] == [3, 0]
    assert store.stamps("a/y") == {"a/y/z": before["a/y/z"]}
    assert store.stamp("a/x") == before["a/x"]
    store.write("a/x", b"two")
    after = store.stamps()
    assert after["a/x"].size == 3
    assert after["a/x"].version != before["a/x"].version
    assert after["a/y/z"] == before["a/y/z"]


def test_more_keys_than_one_request_may_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_ray.storage.s3._PAGE", 2)
    for number in range(5):
        store.write(f"many/{number}", b"")
    assert len(store.list("many")) == 5
    store.delete("many")
    assert store.list() == []


def test_within_sees_what_is_below(store: Store) -> None:
    inner = store.within("runs/one")
    inner.write("state.json", b"{}")
    assert inner.uri == f"{store.uri}/runs/one"
    assert inner.list() == ["state.json"]
    assert store.list() == ["runs/one/state.json"]
    inner.delete("state.json")
    assert store.list() == []


def test_a_large_file_arrives_and_is_fetched_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = TransferConfig(multipart_threshold=6 << 20, multipart_chunksize=5 << 20)
    monkeypatch.setattr("t2i_ray.storage.s3._TRANSFER", parts)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(11 << 20))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    store.upload(source, "data/shard.npy")
    path = store.fetch("data/shard.npy", digest)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert store.fetch("data/shard.npy", digest) == path
    with pytest.raises(MissingKey, match="absent"):
        store.fetch("absent", "0" * 64)


def test_without_a_sum_it_is_whatever_is_there_now(store: Store) -> None:
    for content in (b"first", b"other", b"third and longer", b"first"):
        store.write("a/file", content)
        path = store.fetch("a/file")
        assert path.read_bytes() == content
        assert store.fetch("a/file") == path
    with pytest.raises(MissingKey, match="absent"):
        store.fetch("absent")


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", "a/./b", "a//b", "a\\b", "a\0"])
def test_malformed_keys(store: Store, key: str) -> None:
    for call in (store.read, store.exists, lambda key: store.write(key, b"")):
        with pytest.raises(ValueError, match="not a key"):
            call(key)


def test_a_writable_store_stays_as_it_was(store: Store) -> None:
    check_writable(store)
    assert store.list() == []


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("no room", "ENOSPC")))
    assert (str(error), error.code) == ("no room", "ENOSPC")


# --------------------------------------------------------------------------------- local


def test_a_write_cut_short_leaves_what_was_there(tmp_path: Path) -> None:
    store = open_store(config.Storage(uri=str(tmp_path)))
    store.write("a", b"old")
    with pytest.raises(StorageError, match="could not write a: "):
        store.upload(Path("/proc/self/mem"), "a")  # reading it fails after the file was opened
    assert store.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unfinished_files_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / f".{'0' * 32}.part").write_bytes(b"left by a killed process")
    (tmp_path / ".hidden").write_bytes(b"")
    assert open_store(config.Storage(uri=str(tmp_path))).list() == [".hidden"]


def test_a_link_that_leads_nowhere_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_bytes(b"one")
    (tmp_path / "folder/gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "folder")
    store = open_store(config.Storage(uri=str(tmp_path)))
    assert store.list() == ["folder/a", "linked/a"] == [*store.stamps()]


def test_scratch_of_a_killed_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time; from t2i_ray.storage.scratch import scratch\n"
        "with scratch() as folder:\n"
        "    (folder / 'file').touch(); print(folder, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout
        theirs = Path(other.stdout.readline().strip())
        with scratch() as ours:
            assert folders(tmp_path) == {ours, theirs}
        assert (theirs / "file").exists()  # its process lives
        other.kill()
    with scratch() as ours:
        assert folders(tmp_path) == {ours}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["os.open", "fcntl.flock", "os.mkdir", "shutil.rmtree"])
def test_scratch_of_a_process_that_was_killed_at_any_moment_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Right after this call, or before it if it removes."""
    code = (
        "import fcntl, os, shutil, tempfile; from t2i_ray.storage.scratch import scratch\n"
        "tempfile.gettempdir()  # makes a file to see where it can\n"
        f"call = {moment}\n"
        "def killed(*args, **more):\n"
        "    'rmtree' in call.__name__ or call(*args, **more)\n"
        "    os.kill(os.getpid(), 9)\n"
        f"{moment} = killed\n"
        "with scratch() as folder:\n"
        "    (folder / 'file').touch()"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == -9
    assert list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch() as ours:
        assert folders(tmp_path) == {ours}
    assert not list(tmp_path.iterdir())


def test_scratch_removes_nothing_that_it_has_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever begins as its folders do, links, and what lies in another folder."""
    outside, place = tmp_path / "outside", tmp_path / "tmp"
    name = f"t2i_ray-scratch-{'0' * 31}"
    kept = [
        *("t2i_ray-runs/a", "t2i_ray-cache/a", "t2i_ray-main/a", "t2i_ray-scratch/a"),
        *("t2i_ray-scratch-runs/a", "t2i_ray-scratch-runs.lock"),
        *(f"{name}0/a", f"{name}1.lock/a"),  # without a lock; a folder that is called like one
    ]
    for file in [outside / "a", *(place / name for name in kept)]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (place / f"{name}2").symlink_to(outside)
    (place / f"{name}2.lock").touch()
    (place / f"{name}0.lock").symlink_to(outside / "a")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with scratch():
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize("theirs", [".lock", ""])
def test_scratch_of_another_user_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    name = f"t2i_ray-scratch-{'0' * 32}"
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.lock").touch()
    os.chown(tmp_path / f"{name}{theirs}", 12345, 12345)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.lock"}


def test_many_make_and_clean_scratch_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, random; from t2i_ray.storage.scratch import scratch\n"
        "for _ in range(200):\n"
        "    with scratch() as folder:\n"
        "        (folder / 'file').write_bytes(b'')\n"
        "        assert (folder / 'file').exists()\n"
        "        if random.random() < 0.1:\n"
        "            if child := os.fork():\n"
        "                os.waitpid(child, 0)\n"
        "            else:\n"
        "                with scratch() as other:\n"
        "                    (other / 'file').touch(); os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    crowd = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [process.communicate()[1] for process in crowd] == [b""] * 4
    assert [process.returncode for process in crowd] == [0] * 4
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch() as ours:
        assert folders(tmp_path) == {ours}


def folders(place: Path) -> set[Path]:
    return {path for path in place.iterdir() if path.is_dir()}


def test_local_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert open_store(config.Storage(uri="~/here")).uri == str(tmp_path / "here")
    assert open_store(config.Storage(uri="here")).uri == str(tmp_path / "here")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert open_store(config.Storage(uri="~/here")).uri == str(tmp_path / "here")
    with pytest.raises(UserError, match=r"storage\.uri=here: .*absolute"):
        open_store(config.Storage(uri="here"))


def test_a_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"storage\.uri=.*/file: could not write") as caught:
        check_writable(open_store(config.Storage(uri=str(tmp_path / "file"))))
    assert "\n" not in str(caught.value)


def test_a_local_store_does_without_boto3() -> None:
    code = "import sys, t2i_ray.storage; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------ S3


def test_a_damaged_download_is_refused(s3_config: config.Storage, tmp_path: Path) -> None:
    store = open_store(s3_config)
    store.write("shard", b"content")
    good, bad = hashlib.sha256(b"content").hexdigest(), "0" * 64
    with pytest.raises(StorageError, match="shard is damaged"):
        store.fetch("shard", bad)
    assert not (tmp_path / "cache" / bad).exists()
    assert store.fetch("shard", good).read_bytes() == b"content"
    store.delete("shard")
    assert store.fetch("shard", good).read_bytes() == b"content"  # from the cache


@pytest.mark.parametrize("sha256", ["", "../../outside", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_a_sum_that_can_be_none_is_no_name_in_the_cache(
    s3_config: config.Storage, tmp_path: Path, sha256: str
) -> None:
    (tmp_path / "outside").write_bytes(b"not to be taken for a copy")
    store = open_store(s3_config)
    store.write("shard", b"content")
    with pytest.raises(ValueError, match="is no sha256 in hex"):
        store.fetch("shard", sha256)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("sha256", ["", "../../outside"])
def test_a_manifest_with_a_sum_that_can_be_none_is_damaged(
    s3_config: config.Storage, sha256: str
) -> None:
    store = open_store(s3_config)
    source = config.SyntheticFlowers(images=64)
    prefix = prepare(config.Data(source=source, image_size=28, load_size=32), store)
    manifest = store.read_json(f"{prefix}/manifest.json")
    manifest["shards"][0]["images_sha256"] = sha256
    store.write_json(f"{prefix}/manifest.json", manifest)
    with pytest.raises(UserError, match=r"damaged; delete the folder .* prepare again"):
        open_prepared(store, prefix).images(np.arange(2))

    embeddings._write(store, {"count": 3}, np.zeros((3, 2), np.float32))
    store.write_json("manifest.json", {"count": 3, "sha256": sha256})
    with pytest.raises(embeddings._DamagedError, match="manifest can't be read"):
        embeddings._read(store, {"count": 3})


def test_uploads_that_were_not_completed_are_aborted(
    s3: S3Server, s3_config: config.Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2i_ray.storage.s3._PAGE", 2)
    store = open_store(s3_config)
    assert isinstance(store, S3Store)
    client = _client(s3.endpoint, None)
    begun: dict[str, Any] = {}
    for key in ("runs/a/1", "runs/a/2", "runs/a/2", "runs/a/b/3", "runs/a", "runs/ab/1"):
        place: Any = {"Bucket": s3.bucket, "Key": f"{store.prefix}/{key}"}
        begun[key] = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
        client.upload_part(**begun[key], PartNumber=1, Body=b"part")
    store.write("runs/a/1", b"whole")

    def left() -> set[str]:
        found = client.list_multipart_uploads(Bucket=s3.bucket, Prefix=store.prefix)
        return {entry["Key"].removeprefix(f"{store.prefix}/") for entry in found["Uploads"]}

    assert left() == set(begun)
    store.within("runs").abort_uploads("a/")
    assert left() == {"runs/a", "runs/ab/1"}
    store.within("runs/a").abort_uploads()
    store.within("runs/absent").abort_uploads()
    assert left() == {"runs/a", "runs/ab/1"}
    assert store.list() == ["runs/a/1"]
    assert store.read("runs/a/1") == b"whole"
    with pytest.raises(client.exceptions.NoSuchUpload):  # its writer, if it still lives
        client.upload_part(**begun["runs/a/1"], PartNumber=2, Body=b"part")


def test_the_workers_of_a_node_download_once(
    s3_config: config.Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_config)
    store.write("shard", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    downloads: list[str] = []
    download = S3Store._download

    def counted(self: S3Store, key: str, sha256: str, path: Path) -> Path:
        downloads.append(key)
        return download(self, key, sha256, path)

    monkeypatch.setattr(S3Store, "_download", counted)
    paths: list[Path] = []
    workers = [
        threading.Thread(target=lambda: paths.append(store.fetch("shard", digest)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert downloads == ["shard"]
    assert len(paths) == 4
    assert {path.read_bytes() for path in paths} == {b"content"}


@pytest.mark.parametrize(
    ("uri", "endpoint", "said"),
    [
        ("gs://bucket/x", None, r"storage\.uri=gs://bucket/x: .*s3://"),
        ("", None, r"storage\.uri=: .*local folder"),
        ("s3://", None, r"storage\.uri=s3://: .*bucket"),
        ("s3:///x", None, r"storage\.uri=s3:///x: .*bucket"),
        ("s3://bucket/../x", None, r"storage\.uri=s3://bucket/\.\./x: "),
        ("s3://bucket/x?endpoint=y", None, r"storage\.endpoint"),
        ("s3://bucket/x", "127.0.0.1:9000", r"storage\.endpoint=127\.0\.0\.1:9000: .*http://"),
    ],
)
def test_malformed_uris(uri: str, endpoint: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_store(config.Storage(uri=uri, endpoint=endpoint))


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [("s3://id:sesame@bucket/x", None), ("s3://bucket/x", "http://id:sesame@127.0.0.1:9000")],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(uri: str, endpoint: str | None) -> None:
    with pytest.raises(UserError, match="must not hold credentials") as caught:
        open_store(config.Storage(uri=uri, endpoint=endpoint))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "bucket", "said"),
    [
        ({}, "no-such-bucket", "NoSuchBucket; create the bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "sesame"}, None, "mend AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "sesame"}, None, "mend AWS_ACCESS_KEY_ID"),
        ({"AWS_SESSION_TOKEN": "sesame\n1"}, None, "stray characters"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, None, "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_s3_refuses_is_one_line_without_secrets(
    s3: S3Server,
    s3_config: config.Storage,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    bucket: str | None,
    said: str,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{bucket}/x" if bucket else s3_config.uri
    store = open_store(config.Storage(uri=uri, endpoint=s3.endpoint))
    with pytest.raises(UserError, match=said) as caught:
        check_writable(store)
    text = str(caught.value)
    assert text.startswith(f"storage.uri={uri}: ")
    assert "\n" not in text
    for secret in ("sesame", s3.env["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in text
        with pytest.raises(StorageError) as raised:
            store.write("key", b"")
        assert secret not in str(raised.value)
        assert raised.value.__suppress_context__  # nor in a traceback


def test_credentials_of_a_role(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a container is given them: asked for by our client, and by pyarrow's for Ray Train."""
    credentials = {
        "AccessKeyId": s3.env["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": s3.env["AWS_SECRET_ACCESS_KEY"],
        "Token": "",
        "Expiration": "2100-01-01T00:00:00Z",
    }
    asked: list[str] = []

    class Role(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            body = json.dumps(credentials).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    document = {"uri": f"s3://{s3.bucket}/{tmp_path.name}", "endpoint": s3.endpoint}
    run = config.parse_config({"name": "role", "train": {"steps": 1}, "storage": document})
    with ThreadingHTTPServer(("127.0.0.1", 0), Role) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/role"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "who-asks")
        for name, value in PLAIN_CHECKSUMS.items():  # as is done before a cluster is joined
            monkeypatch.setenv(name, value)
        store = open_store(run.storage)
        store.write("ray/ours", b"1")
        assert asked == ["who-asks"]
        path, filesystem = ray_storage(run, store)
        with filesystem.open_input_stream(f"{path}/ours") as file:
            assert file.read() == b"1"
        with filesystem.open_output_stream(f"{path}/theirs") as file:
            file.write(b"2")
        server.shutdown()
    assert store.read("ray/theirs") == b"2"
    assert len(asked) > 1
    assert set(asked) == {"who-asks"}


def test_a_server_that_is_not_there(s3_away: config.Storage) -> None:
    with pytest.raises(StorageError, match="EndpointConnectionError") as caught:
        open_store(s3_away).read("key")
    assert caught.value.code == "EndpointConnectionError"


def test_a_patient_store_outlasts_an_outage(
    s3: S3Server, s3_config: config.Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = PatientStore(open_store(s3_config).hurried(), 60).within("patient")
    patient.write("a", b"1")
    s3.server.stop_gateway()
    with ThreadPoolExecutor() as threads:
        there = threads.submit(patient.read, "a")
        created = threads.submit(patient.create, "a", b"2")
        time.sleep(3)
        waited = not there.done() and not created.done()
        s3.server.start_gateway()  # here, since it ends with the thread that starts it
        assert waited
        assert there.result() == b"1"
        assert not created.result()
    assert "the storage is away, trying on" in capsys.readouterr().out
    with pytest.raises(MissingKey):  # an answer
        patient.read("b")


def test_a_patient_store_gives_up(s3: S3Server, s3_config: config.Storage) -> None:
    s3.server.stop_gateway()
    try:
        with pytest.raises(StorageError):
            PatientStore(open_store(s3_config).hurried(), 0.1).read("a")
    finally:
        s3.server.start_gateway()
