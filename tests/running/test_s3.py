"""Traces in a bucket, through a real S3 server on this machine: `pip install 'moto[s3]' flask flask-cors` (115 MB)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import lbw
from pyarrow import fs

from lbw_sim.errors import TraceError
from lbw_sim.guard import GuardSpec
from lbw_sim.trace import read_traces
from lbw_sim.tune import executor, tune

pytest.importorskip("flask_cors")  # what the server needs beside moto itself
pytest.importorskip("moto")

TINY = Path(__file__).parents[2] / "traces" / "tiny"
RUNS = ("postln_lr_bump_shadow_s7", "preln_lr_bump_shadow_s7", "preln_none_shadow_s7", "postln_nan_loss_shadow_s7")
URI = "s3://bucket/traces"


@contextmanager
def serving(**more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **more},
    )  # fmt: skip
    assert server.stderr is not None
    try:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"Running on .*:(\d+)", line)))
        # it tells of every request, and stops when nobody listens
        listener = threading.Thread(target=server.stderr.read)
        listener.start()
        yield server, port
    finally:
        server.kill()
        server.wait()
        listener.join()
        server.stderr.close()


def environment(patch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "somebody"), ("AWS_SECRET_ACCESS_KEY", "secret"),
                        ("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_EC2_METADATA_DISABLED", "true"),
                        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")):  # fmt: skip
        patch.setenv(name, value)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    for run in RUNS:
        (folder / f"run_id={run}").symlink_to(TINY / f"run_id={run}")
    return folder


def fill(local: Path) -> None:
    store, _ = fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
    store.create_dir("bucket")
    for run in sorted(local.iterdir()):
        fs.copy_files(str(run.resolve()), f"bucket/traces/{run.name}",
                      source_filesystem=fs.LocalFileSystem(), destination_filesystem=store)  # fmt: skip


@pytest.fixture(scope="module")
def bucket(local: Path) -> Iterator[int]:
    with serving() as (_, port), pytest.MonkeyPatch.context() as patch:
        environment(patch, port)
        fill(local)
        yield port


@pytest.mark.parametrize(
    "command",
    [
        ["show", "TRACES", "--json"],
        ["show", "TRACES/run_id=preln_none_shadow_s7/segment-000.parquet", "--json"],
        ["replay", "TRACES", "--json"],
        ["score", "TRACES", "--guard", "default", "--json"],
        ["verify", "TRACES", "--json"],
        ["label", "TRACES", "--propose", "--json"],
        ["compare", "default", "default", "TRACES", "--json"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_says_the_same_of_a_bucket_as_of_a_folder(bucket: int, local: Path, command: list[str]) -> None:
    here, there = ([word.replace("TRACES", where) for word in command] for where in (str(local), URI))
    assert lbw(*there).stdout == lbw(*here).stdout


def test_a_report_is_written_from_a_bucket(bucket: int, tmp_path: Path) -> None:
    lbw("report", URI, "-o", tmp_path / "page.html", "--details", 1, "--rule", "zscore")
    page = (tmp_path / "page.html").read_text()
    assert all(run in page for run in RUNS)


@pytest.mark.parametrize("name", ["local", "ray"])
def test_a_search_over_a_bucket_is_the_search_over_a_folder(bucket: int, local: Path, name: str) -> None:
    if name == "ray":
        pytest.importorskip("ray")
    # where the bucket is, is said in the URI: every worker has to hear it
    uri = f"{URI}?endpoint_override=127.0.0.1:{bucket}&scheme=http&region=us-east-1"
    start = GuardSpec.load("zscore")
    found = tune([uri], start, candidates=8, search="random", workers=executor(name, 2))
    wanted = tune([local], start, candidates=8, search="random")
    assert found.spec.fingerprint == wanted.spec.fingerprint
    assert found.front == wanted.front
    assert repr(found.held_out) == repr(wanted.held_out)


def test_what_is_not_there_or_cannot_be_done_is_said_in_one_line(bucket: int, tmp_path: Path) -> None:
    assert "there is no bucket 'elsewhere'" in lbw("show", "s3://elsewhere/traces", code=2).stderr
    assert "s3://bucket/nothing: no such file or folder" in lbw("show", "s3://bucket/nothing", code=2).stderr
    added = lbw("label", f"{URI}/run_id=preln_none_shadow_s7", "--add", "spike", 10, 12, code=2).stderr
    assert "labels are written on this machine only" in added


def test_a_key_that_the_store_does_not_know_is_refused_with_where_keys_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(INITIAL_NO_AUTH_ACTION_COUNT="0") as (_, port):
        environment(monkeypatch, port)
        told = lbw("show", URI, code=2).stderr
    assert "ACCESS_DENIED" in told
    assert "AWS_PROFILE" in told


def test_a_store_that_dies_between_two_looks_ends_in_one_line(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (server, port):
        environment(monkeypatch, port)
        fill(local)
        trace = read_traces(URI)[0]
        server.send_signal(signal.SIGKILL)
        server.wait()
        with pytest.raises(TraceError, match=r"s3://bucket/traces/run_id=\S+: cannot be read: .*NETWORK_CONNECTION"):
            trace.table()
