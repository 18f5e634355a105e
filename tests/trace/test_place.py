"""Stores that answer badly, late or not at all; without a network."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lbw_sim import Decision, GuardSpec, Telemetry
from lbw_sim.errors import TraceError
from lbw_sim.trace import Recorder, open_traces, read_traces, run_paths
from lbw_sim.trace.place import Place
from lbw_sim.watch import find_run


class Refusing(BaseHTTPRequestHandler):
    """Has always too much to do."""

    asked = 0

    def do_HEAD(self) -> None:
        type(self).asked += 1
        self.send_response(503)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusing]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    Refusing.asked = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield Refusing
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_store_that_refuses_is_asked_three_times_and_named(refusing: type[Refusing]) -> None:
    with pytest.raises(TraceError, match=r"s3://bucket/traces: cannot be reached: .*503"):
        read_traces("s3://bucket/traces?region=us-east-1")
    assert refusing.asked == 3


def test_googles_client_is_told_to_give_up_unless_the_uri_says_when() -> None:
    plain, given = "gs://anonymous@bucket/x", "gs://anonymous@bucket/x?retry_limit_seconds="
    assert Place.of(plain).system == Place.of(f"{given}10").system
    assert Place.of(f"{given}77").system != Place.of(plain).system


def test_a_uri_is_read_and_not_written_also_where_a_path_has_eaten_a_slash(tmp_path: Path) -> None:
    for given in ("s3://bucket/traces", Path("s3://bucket/traces")):
        with pytest.raises(TraceError, match="runs are recorded on this machine only"):
            Recorder.check(given, "run", {})
    with pytest.raises(TraceError, match="runs are watched on this machine only"):
        find_run(Path("s3://bucket/traces"))
    Recorder.check(tmp_path / "s3:" / "bucket", "run", {})  # a folder may be called so


def test_a_file_is_a_run_by_path_and_by_uri() -> None:
    file = next((Path(__file__).parents[2] / "traces" / "tiny").glob("*/*.parquet"))
    for path in (str(file), file.as_uri()):
        assert run_paths(path) == [path]
        assert len(read_traces(path)) == 1


def test_a_link_that_leads_back_is_followed_once(tmp_path: Path) -> None:
    spec = GuardSpec.load("never")
    for run_id in ("one", "two"):
        with Recorder.open(tmp_path / run_id, run_id, spec=spec, mode="shadow") as recorder:
            recorder.append(Telemetry(0, loss=1.0), Decision(1, 0, 1.0, 0.0, 0), elapsed_s=0.0, effective_lr=1.0)
    (tmp_path / "one" / "back").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert [trace.run_id for trace in read_traces(tmp_path)] == ["one", "two"]
    assert len(run_paths(tmp_path)) == 2


def test_names_that_are_no_utf_8_harm_no_other_run_and_are_named(tmp_path: Path) -> None:
    spec = GuardSpec.load("never")
    # as bytes: what Python makes of such a name is no text
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for folder in (tmp_path, strange):
        with Recorder.open(folder, "run" if folder == tmp_path else "lost", spec=spec, mode="shadow") as recorder:
            recorder.append(Telemetry(0, loss=1.0), Decision(1, 0, 1.0, 0.0, 0), elapsed_s=0.0, effective_lr=1.0)
    Path(strange + ".txt").touch()
    found, broken = open_traces(tmp_path)
    assert [trace.run_id for trace in found] == ["run"]
    assert ["a name that is no UTF-8 here cannot be opened: rename it" in str(error) for error in broken] == [True]
    with pytest.raises(TraceError, match="run under a locale of UTF-8"):
        read_traces(strange)
