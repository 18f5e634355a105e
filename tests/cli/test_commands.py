"""Every command as its user runs it: what it prints, where, and with which exit code."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import lbw, lbw_alone
from forked import Forked

from lbw_sim.guard import preset_names
from lbw_sim.stress.faults import FAULTS
from lbw_sim.trace import read_traces
from lbw_sim.trace.labels import KINDS

COMMANDS = (
    "demo", "record", "watch", "import", "show", "label", "replay", "score", "compare", "report", "backtest", "verify",
    "plot", "scrub", "components", "calibrate", "simulate", "tune", "fork", "stress",
)  # fmt: skip

HIT = "postln_lr0.005_bad_labels_adamw_s0"
QUIET = "postln_lr0.005_none_adamw_s0"
RULE = '''
from typing import NamedTuple
from lbw_sim import Assessment, Regime, Signals
from lbw_sim.guard import analyzer, param

class HighState(NamedTuple):
    pass

@analyzer(version=1, needs=("loss",))
class AboveLimit:
    """SPIKE while the loss is above a limit."""

    limit: float = param(4.0, low=0.0, high=100.0, unit="nats", doc="highest good loss")

    def init(self) -> HighState:
        return HighState()

    def step(self, state: HighState, signals: Signals) -> tuple[HighState, Assessment]:
        return state, Assessment(int(Regime.SPIKE if signals.loss > self.limit else Regime.STABLE), signals.loss)
'''
SPEC = """lbw_spec = 1
name = "above"
[sensor]
name = "raw"
[analyzer]
name = "above_limit"
limit = 3.0
[policy]
name = "damp_release"
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> Path:
    """Two short real runs, recorded by the command itself."""
    folder = tmp_path_factory.mktemp("traces")
    command = ["record", "--out", folder, "--steps", 90, "--onset", 60, "--fault", "none", "--fault", "bad_labels"]
    done = forked.run("from lbw_sim.cli import main; main()", *command)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_says_what_it_does(command: str) -> None:
    text = lbw(command, "--help").stdout
    assert f"Usage: lbw {command}" in text
    assert "--" in text


def test_top_level_help_lists_every_command() -> None:
    text = lbw("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert lbw("--version").stdout.startswith("lbw-sim ")


def test_record_then_verify_finds_every_decision_equal(traces: Path) -> None:
    found = json.loads(lbw("verify", traces, "--json").stdout)
    assert found["failures"] == []
    assert found["rows"] == 180
    assert "2 of 2 runs verified: 180 rows" in lbw("verify", traces).stdout


def test_verify_exits_with_1_and_names_the_row_when_a_value_was_altered(traces: Path, tmp_path: Path) -> None:
    (file,) = (traces / "run_id=postln_lr0.005_none_adamw_s0").glob("*.parquet")
    table = pq.ParquetFile(file).read()
    place = table.schema.get_field_index("loss")
    loss = pc.if_else(pc.equal(table["step"], 33), 1.0, table["loss"])
    copy = tmp_path / file.parent.name
    copy.mkdir()
    pq.write_table(table.set_column(place, table.schema.field(place), loss), copy / file.name)
    assert "row 33 does not match its checksum" in lbw("verify", copy, code=1).stdout


@pytest.fixture(scope="module")
def spoilt(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of which one was cut short, and one has a byte turned among its rows: only who reads them can see."""
    folder = tmp_path_factory.mktemp("spoilt")
    good, other = sorted(traces.iterdir())
    shutil.copytree(good, folder / good.name)
    for name in ("cut", "turned"):
        shutil.copytree(other, folder / f"run_id={name}")
        (file,) = (folder / f"run_id={name}").glob("*.parquet")
        found = bytearray(file.read_bytes())
        columns = pq.ParquetFile(file)
        loss = columns.metadata.row_group(0).column(columns.schema_arrow.names.index("loss"))
        found[loss.data_page_offset + loss.total_compressed_size - 9] ^= 1
        file.write_bytes(found if name == "turned" else found[:-20])
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["show", "{spoilt}"],
        ["label", "{spoilt}"],
        ["replay", "{spoilt}", "-g", "never"],
        ["score", "{spoilt}", "-g", "never"],
        ["compare", "never", "never", "{spoilt}"],
        ["report", "{spoilt}", "-o", "{out}/page.html", "--rule", "never"],
        ["backtest", "never", "{spoilt}", "-o", "{out}/never.backtest.json"],
        ["plot", "{spoilt}", "--out", "{out}"],
        ["scrub", "{spoilt}", "--out", "{out}"],
        ["calibrate", "{spoilt}", "--plant", "tissue_law", "--draws", "0", "--out", "{out}/plant.toml"],
        ["simulate", "--plant", "lasting_damage", "-g", "never", "--noise", "{spoilt}", "--seeds", "1"],
        ["tune", "{spoilt}", f"{{traces}}/run_id={QUIET}", "-o", "{out}/guard.toml", "-g", "zscore", "-n", "2",
         "--search", "random"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_broken_runs_are_named_all_at_once_and_left_out_on_demand(
    command: list[str], traces: Path, spoilt: Path, tmp_path: Path
) -> None:
    words = [word.format(spoilt=spoilt, traces=traces, out=tmp_path) for word in command]
    of = 4 if command[0] == "tune" else 3
    refused = lbw(*words, code=2)
    *broken, last = refused.stderr.splitlines()
    assert last.startswith(f"lbw: 2 of {of} runs cannot be read, and nothing was done")
    assert "--skip-broken" in last
    assert [("run_id=cut" in line, "cut short" in line) for line in broken].count((True, True)) == 1
    assert [("run_id=turned" in line, "rows cannot be read" in line) for line in broken].count((True, True)) == 1
    assert refused.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] in ([], ["guard.ledger"])
    if command[0] == "calibrate":
        return  # one run is left, and that is for another test
    done = lbw(*words, "--skip-broken", code=0)
    told = [line for line in done.stderr.splitlines() if "eft out" in line]
    assert sorted("run_id=turned" in line for line in told) == [False, True]
    assert sorted("run_id=cut" in line for line in told) == [False, True]


def test_what_was_left_out_stands_in_what_is_handed_on(spoilt: Path, tmp_path: Path) -> None:
    page, evidence = tmp_path / "page.html", tmp_path / "never.backtest.json"
    lbw("report", spoilt, "-o", page, "--rule", "never", "--skip-broken")
    assert "2 runs could not be read and stand nowhere here" in page.read_text(encoding="utf-8")
    lbw("backtest", "never", spoilt, "-o", evidence, "--skip-broken")
    assert any("2 runs that could not be read" in text for text in json.loads(evidence.read_text())["not_tested_on"])


def test_a_terminal_that_knows_ascii_only_gets_the_table(traces: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lbw_sim", "label", str(traces)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert HIT in done.stdout.decode("ascii")


@pytest.mark.filterwarnings("ignore:.*segment 0 is missing:UserWarning")
def test_verify_does_not_pass_a_run_of_which_a_segment_is_missing(own_traces: Path) -> None:
    run = own_traces / f"run_id={HIT}"
    table = pq.read_table(run / "segment-000.parquet", partitioning=None)
    about = json.loads(table.schema.metadata[b"lbw"]) | {"segment": 1}
    pq.write_table(table.replace_schema_metadata({b"lbw": json.dumps(about)}), run / "segment-001.parquet")
    (run / "segment-000.parquet").unlink()
    text = lbw("verify", own_traces, code=1).stdout
    assert f"DIFFERS  run '{HIT}': segment 0 is missing" in text
    assert "1 of 2 runs verified" in text


def test_verify_counts_a_run_that_cannot_be_read_as_one_that_fails(spoilt: Path) -> None:
    done = lbw("verify", spoilt, code=1)
    assert done.stdout.count("UNREADABLE") == 2
    assert "1 of 3 runs verified" in done.stdout
    assert len(json.loads(lbw("verify", spoilt, "--json", code=1).stdout)["failures"]) == 2


def test_who_names_a_run_is_not_told_of_the_others(spoilt: Path, tmp_path: Path) -> None:
    assert lbw("label", spoilt, "--run", HIT).stderr == ""
    assert "run_id=cut" in lbw("label", spoilt, "--run", "cut", code=2).stderr
    assert "no run named 'cut'" in lbw("label", spoilt, "--run", "cut", "--skip-broken", code=2).stderr


def test_replay_lists_alarms_and_writes_them_in_steps(traces: Path, tmp_path: Path) -> None:
    rows = json.loads(lbw("replay", traces, "-g", "default", "-g", "never", "--json").stdout)
    assert {(row["guard"], row["run"]) for row in rows} == {
        (guard, f"postln_lr0.005_{fault}_adamw_s0")
        for guard in ("default", "never")
        for fault in ("none", "bad_labels")
    }
    lbw("replay", traces, "-g", "zscore", "--alarms", tmp_path / "alarms.json")
    alarms = json.loads((tmp_path / "alarms.json").read_text())
    assert len(alarms) == 2
    assert any(60 <= first <= 68 for first, _ in alarms["postln_lr0.005_bad_labels_adamw_s0"])
    lbw("replay", traces, "-g", "zscore", "-g", "never", "--alarms", tmp_path / "no.json", code=2)


def test_score_judges_by_the_injected_labels(traces: Path, tmp_path: Path) -> None:
    rows = json.loads(lbw("score", traces, "--figure", tmp_path / "score.svg", "--json").stdout)
    pooled = {row["guard"]: row for row in rows if row["group"] == "all"}
    assert pooled["never"]["recall"] == 0.0
    assert pooled["zscore"]["recall"] == 1.0
    assert pooled["never"]["events"] == 1
    assert (pooled["never"]["affiliation_precision"], pooled["never"]["affiliation_recall"]) == (None, 0.0)
    assert pooled["zscore"]["vus_pr"] > pooled["never"]["vus_pr"]
    assert {"oracle", "random"} <= set(pooled)
    assert (tmp_path / "score.svg").read_text().startswith("<?xml")
    lbw("score", traces, "-g", "zscore", "--figure", tmp_path / "curves.svg", "--curves")
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")


def test_a_runs_folder_may_have_another_name(traces: Path, tmp_path: Path) -> None:
    shutil.copytree(traces / "run_id=postln_lr0.005_none_adamw_s0", tmp_path / "copy")
    assert json.loads(lbw("show", tmp_path / "copy", "--json").stdout)[0]["rows"] == 90


def test_show_tells_how_a_run_was_recorded(traces: Path) -> None:
    facts = json.loads(lbw("show", traces, "--json").stdout)
    assert [run["rows"] for run in facts] == [90, 90]
    assert facts[0]["labels"][0]["note"] == "bad_labels"
    assert facts[0]["provenance"]["seed"] == 0
    assert "mode" in lbw("show", traces / "run_id=postln_lr0.005_none_adamw_s0").stdout
    assert 'name = "damp_release"' in lbw("show", "default").stdout


def test_plot_draws_every_run_and_the_comparison(traces: Path, tmp_path: Path) -> None:
    lbw("plot", traces, "--out", tmp_path, "--format", "png")
    assert len(list(tmp_path.glob("*.png"))) == 3
    lbw("plot", traces, "--out", tmp_path / "replayed", "--guard", "cusum", "--run", "postln_lr0.005_none_adamw_s0")
    assert len(list((tmp_path / "replayed").glob("*.svg"))) == 1


def test_an_analyzer_dropped_into_a_folder_is_listed_checked_replayed_and_scored(
    traces: Path, tmp_path: Path, forked: Forked
) -> None:
    (tmp_path / "above_limit.py").write_text(RULE)
    (tmp_path / "above.toml").write_text(SPEC)
    plugin: list[object] = ["--plugin", tmp_path]
    guard: list[object] = [*plugin, "-g", tmp_path / "above.toml"]
    out = tmp_path / "recorded"
    # in a process of their own: here the rule is to stay unknown
    listed, replayed, _, _, verified = lbw_alone(
        forked,
        ["components", *plugin, "--check"],
        ["replay", traces, *guard, "--json"],
        ["score", traces, *guard],
        ["record", "-o", out, "--steps", 30, *guard, "--method", "guard"],
        ["verify", out, *plugin],
    )
    assert "analyzer above_limit  version 1  conforms" in listed
    assert "limit = 4.0  [0.0, 100.0] nats  highest good loss" in listed
    assert all(row["alarms"] >= 1 and row["regime"] == "SPIKE" for row in json.loads(replayed))
    assert "30 rows" in verified
    refused = lbw("verify", out, code=2).stderr
    assert "no analyzer named 'above_limit'" in refused, "without the plugin the guard cannot be rebuilt"
    assert json.loads(lbw("show", out, "--json").stdout)[0]["guard"] == "above", "but its run can be looked at"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "no-such-folder"], "no traces folder here"),
        (["score", "{empty}"], "holds no run"),
        (["import", "no-such-file"], "no such file or folder"),
        (["import", "{empty}"], "no run was found in"),
        (["replay", "{traces}", "-g", "defualt"], "Did you mean 'default'?"),
        (["plot", "{traces}", "--run", "nobody"], "no run named 'nobody'"),
        (["plot", "{traces}", "--format", "gif"], "no figure format named 'gif'"),
        (["record", "--fault", "earthquake"], "no fault named 'earthquake'"),
        (["record", "--lr", "-1"], "lr=-1.0"),
        (["demo", "--out", "{traces}"], "is not empty"),
        (["components", "--plugin", "nothing.py"], "no such Python file"),
        (["stress", "tinny"], "Did you mean 'tiny'?"),
        (["stress", "tiny", "--seeds", "one"], "neither a whole number nor a range"),
        (["stress", "tiny", "--lrs", "fast"], "'fast' is not a number"),
        (["stress", "tiny", "--methods", "adamw,guard:defualt", "--dry-run"], "Did you mean 'default'?"),
        (["tune", "{traces}", "-o", "nowhere/guard.toml"], "its folder is not there"),
        (["tune", "{traces}", "-o", "{empty}/guard.toml", "--search", "sobl"], "Did you mean 'sobol'?"),
        (["tune", "{empty}", "-o", "{empty}/guard.toml", "--search", "random"], "holds no run"),
        (["show", "defualt"], "Did you mean 'default'?"),
        (["replay", "{empty}"], "lbw import brings logs in"),
        (["replay", "{traces}", "--alarms", "{empty}"], "is a folder; name a file"),
        (["replay", "{traces}", "--alarms", "{text}/alarms.json"], "is a file"),
        (["plot", "{traces}", "--out", "{text}"], "is a file"),
        (["report", "{traces}", "-o", "{empty}"], "is a folder; name a file"),
        (["score", "{traces}", "--figure", "curve.gif"], "its name must end in"),
        (["compare", "never", "never", "no-such-folder", "--figure", "curve.gif"], "its name must end in"),
        (["label", "no-such-folder", "--figure", "curve.gif"], "its name must end in"),
        (["components", "--plugin", "{text}"], "no such Python file"),
        (["stress", "tiny", "--seeds", "5-2", "--dry-run"], "say 2-5"),
        (["stress", "tiny", "--device", "gpu", "--dry-run"], "no device named 'gpu'"),
        (["simulate", "--plant", "lasting_damage", "--schedule", "cosin:0.1"], "neither constant:LR nor cosine:PEAK"),
        (["fork", "--action", "lr:half"], "'half' is not a number"),
        (["watch", "{text}", "--once"], "Makefile: no run is recorded there yet"),
        (["tune", "{traces}", "-o", "{empty}/guard.toml", "--executor", "slurm"], "no executor named 'slurm'"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_exit_code_2(
    arguments: list[str], message: str, traces: Path, tmp_path: Path
) -> None:
    text = Path(__file__).parents[2] / "Makefile"
    done = lbw(*(argument.format(traces=traces, empty=tmp_path, text=text) for argument in arguments), code=2)
    assert done.stderr.startswith("lbw: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_help_names_what_may_be_given() -> None:
    record, label = (" ".join(re.sub("[^a-z_ ]", " ", lbw(c, "--help").stdout).split()) for c in ("record", "label"))
    assert all(name in record for name in FAULTS)
    assert all(kind in label for kind in KINDS)
    assert all(name in lbw("components").stdout.partition("presets\n")[2] for name in preset_names())


def test_help_shows_brackets_and_wraps_by_the_terminal() -> None:
    assert "{run: [[first" in " ".join(lbw("replay", "--help").stdout.split())
    assert "the control that each guard asks for" in " ".join(lbw("score", "--help").stdout.split())


def test_a_disk_error_is_one_line_and_no_stack_trace(traces: Path) -> None:
    run = next(traces.iterdir())
    done = lbw("plot", run, "--out", "/dev/full/figures", code=2)
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert (
        lbw("calibrate", run, "--plant", "tissue_law", "--draws", 0, "--out", "/dev/full", code=2).stderr.count("\n")
        == 1
    )


def test_a_log_file_gets_no_progress_bars(traces: Path) -> None:
    assert lbw("verify", traces).stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error(traces: Path) -> None:
    for command in (["components"], ["import", "--sources"], ["show", str(traces)]):
        with subprocess.Popen(
            [sys.executable, "-m", "lbw_sim", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b""), command


def test_ctrl_c_ends_training_at_once_and_keeps_the_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lbw_sim", "record", "--out", str(tmp_path), "--steps", "1000000"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE,
        # a suite started in the background ignores SIGINT, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        while process.poll() is None and not any(path.stat().st_size > 5_000 for path in tmp_path.rglob("*.journal")):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, b"lbw: interrupted\n")
    assert 0 < read_traces(tmp_path)[0].table().num_rows < 1_000_000


def test_a_narrow_terminal_cuts_no_figure_off(traces: Path) -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {**os.environ, "COLUMNS": "60"}
    command = [sys.executable, "-m", "lbw_sim", "score", str(traces), "-g", "default"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(writer)
        shown = b""
        # Linux ends a terminal whose program has gone by an error
        with contextlib.suppress(OSError):
            while part := os.read(reader, 4096):
                shown += part
    os.close(reader)
    assert process.returncode == 0
    text = shown.decode()
    assert "…" not in text
    assert "false alarms per 10k (95 %)  0.0" in text


def test_score_says_that_nothing_is_labelled(traces: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(next(traces.glob("*none*")), bare / next(traces.glob("*none*")).name)
    assert "None of these runs is labelled" in lbw("score", bare, "-g", "never").stdout
    assert "None of these runs is labelled" not in lbw("score", traces, "-g", "never").stdout


def test_a_plant_of_one_run_is_called_untested(traces: Path, tmp_path: Path) -> None:
    done = lbw("calibrate", next(traces.iterdir()), "--plant", "tissue_law", "--draws", 0, "--out", tmp_path / "p.toml")
    assert "nothing tells how well this plant predicts" in done.stdout


def test_tune_writes_a_guard_that_the_other_commands_take(traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    how = ["-g", "zscore", "--only", "analyzer", "-n", "40", "--search", "random", "--seed", "2"]
    done = lbw("tune", traces, "-o", out, *how)
    assert "The result is the line held out" in done.stdout
    assert "warning: No labelled event was held out" in done.stderr
    facts = json.loads(lbw("tune", traces, "-o", out, *how, "--json").stdout)
    assert facts["guard"]["name"] == "mine"
    assert facts["warnings"]
    assert all(change["parameter"].startswith("analyzer.") for change in facts["changed"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.toml", "mine.ledger", "mine.tune.json", "mine.pareto.csv",
    }  # fmt: skip
    assert facts["guard"]["fingerprint"] in lbw("show", out).stdout
    lbw("backtest", out, traces)
    rows = json.loads(lbw("score", traces, "-g", out, "--json").stdout)
    assert next(row for row in rows if row["guard"] == "mine")["recall"] == 1.0


@pytest.fixture
def own_traces(traces: Path, tmp_path: Path) -> Path:
    """A copy whose labels a test may change."""
    return Path(shutil.copytree(traces, tmp_path / "own"))


def test_label_proposes_beside_the_labels_and_writes_nothing(own_traces: Path) -> None:
    found = json.loads(lbw("label", own_traces, "--propose", "--json").stdout)
    assert found["changes"] == []
    assert {(row["run"], row["number"], row["source"]) for row in found["labels"]} >= {
        (HIT, 1, "injected"),
        (HIT, None, "hindsight"),
    }
    text = lbw("label", own_traces, "--run", HIT).stdout
    assert "injected" in text
    assert "1 run, 1 label, 0 changes" in text


def test_label_writes_proposals_once_and_never_over_a_label_that_is_there(own_traces: Path) -> None:
    file = own_traces / f"run_id={HIT}" / "_labels.json"
    injected = file.read_bytes()
    assert "0 changes" in lbw("label", own_traces, "--run", HIT, "--write").stdout, "the injected label says it already"
    assert file.read_bytes() == injected
    file.unlink()
    assert f"added to {HIT}: spike in steps" in lbw("label", own_traces, "--write").stdout
    written = file.read_bytes()
    assert {label["source"] for label in json.loads(written)["labels"]} == {"hindsight"}
    assert "0 changes" in lbw("label", own_traces, "--write").stdout
    assert file.read_bytes() == written


def test_label_adds_and_removes_hand_labels_of_one_run(own_traces: Path) -> None:
    run = own_traces / f"run_id={HIT}"
    before = json.loads((run / "_labels.json").read_text())
    text = lbw("label", run, "--add", "benign_shift", 20, 30, "--confidence", "medium", "--note", "new data").stdout
    assert f"added to {HIT}: benign_shift in steps 20-30, medium confidence, hand" in text
    rows = json.loads(lbw("label", own_traces, "--run", HIT, "--json").stdout)["labels"]
    assert [(row["number"], row["kind"], row["source"], row["note"]) for row in rows] == [
        (1, "spike", "injected", "bad_labels"),
        (2, "benign_shift", "hand", "new data"),
    ]
    assert f"removed from {HIT}: benign_shift" in lbw("label", run, "--remove", 2).stdout
    assert json.loads((run / "_labels.json").read_text()) == before
    lbw("label", run, "--figure", own_traces / "run.svg")
    assert (own_traces / "run.svg").read_text().startswith("<?xml")


def test_brackets_and_control_characters_of_a_note_are_shown_and_never_obeyed(own_traces: Path) -> None:
    run = own_traces / f"run_id={HIT}"
    lbw("label", run, "--add", "spike", 20, 30, "--note", "see [/issue 7] \x1b[2J")
    for text in (lbw("label", run).stdout, lbw("show", run).stdout):
        assert r"see [/issue 7] \x1b[2J" in text
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--add", "spike", "10", "12"], "say which by --run"),
        (["--run", HIT, "--remove", "1"], "was injected"),
        (["--run", HIT, "--remove", "2"], "it has 1, numbered from 1"),
        (["--run", QUIET, "--add", "spyke", "10", "12"], "label 1: no kind named 'spyke'"),
        (["--run", QUIET, "--add", "spike", "12", "10"], "are no stretch of a run"),
        (["--run", QUIET, "--add", "spike", "90", "95"], "holds steps 0 to 89"),
        (["--run", "nobody"], "no run named 'nobody'"),
        (["--run", QUIET, "--add", "spike", "10", "12", "--figure", "run.gif"], "its name must end in"),
    ],
)
def test_a_wrong_label_is_refused_and_nothing_is_written(arguments: list[str], message: str, own_traces: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in own_traces.rglob("_labels*")}

    before = files()
    assert message in lbw("label", own_traces, *arguments, code=2).stderr
    assert files() == before


def test_stress_says_what_it_will_take_and_builds_nothing(tmp_path: Path) -> None:
    ask = ["stress", "qwen2.5-7b", "-o", tmp_path / "out", "--seeds", "400-402", "--lrs", "0.001", "--dry-run"]
    (row,) = json.loads(lbw(*ask, "--methods", "adamw,guard:default", "--json").stdout)
    # two methods and the guard's four controls, three seeds, 500 steps
    assert (row["runs"], row["steps"]) == (18, 9000)
    assert row["seconds"] > 3600
    said = lbw(*ask).stdout
    assert "Nothing was built" in said
    assert not (tmp_path / "out").exists()


def test_the_next_command_that_is_offered_can_be_typed_also_where_a_folder_has_a_space_in_it(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("step,loss\n1,3.0\n2,2.5\n")
    done = lbw("import", tmp_path / "run.csv", "--out", tmp_path / "my traces")
    offered = shlex.split(done.stdout.partition("Next:\n")[2])
    assert offered == ["lbw", "replay", str(tmp_path / "my traces")]
    lbw(*offered[1:])


def test_every_command_that_is_offered_quotes_its_paths() -> None:
    sources = [path.read_text() for path in (Path(__file__).parents[2] / "lbw_sim" / "cli").glob("*.py")]
    offered = [found for source in sources for found in re.findall(r"\blbw [a-z]+ (?:--[a-z]+ )?\{([^}]*)\}", source)]
    assert len(offered) >= 9
    # of the demo, quoted as a whole beforehand
    assert [one for one in offered if not one.startswith("typed(") and one != "recorded"] == []


def test_a_command_that_is_offered_stands_whole_on_a_line_of_its_own() -> None:
    for path in (Path(__file__).parents[2] / "lbw_sim" / "cli").glob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            texts = [ast.unparse(part) for part in call.args if isinstance(part, ast.JoinedStr)]
            if any(re.search(r"\blbw [a-z]+ (?:--[a-z]+ )?\{", text) for text in texts):
                assert ast.unparse(call.func) in ("say_next", "LbwError"), f"{path}: {ast.unparse(call)}"


def test_rows_that_find_no_room_are_told_and_the_training_goes_on(tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); from lbw_sim.cli import main; "
    code += (
        f"import sys; sys.argv = ['lbw', 'record', '-o', {str(tmp_path)!r}, '--steps', '60', '--onset', '9']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: \S+_s0: the last \d+ rows could not be recorded", done.stderr)


def test_a_run_id_that_two_folders_have_is_shown_twice_and_labelled_through_a_link(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "traces" / "tiny"
    for folder, source in (("a", "postln_none_shadow_s7"), ("b", "postln_lr_bump_shadow_s7")):
        shutil.copytree(shipped / f"run_id={source}", tmp_path / folder / "run_id=same")
    energies = [line.split()[2] for line in lbw("show", tmp_path).stdout.splitlines() if line.split()[:1] == ["same"]]
    assert len(energies) == 2
    assert energies[0] != energies[1]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "elsewhere").symlink_to(tmp_path / "a")
    lbw("label", tmp_path / "links", "--add", "spike", 100, 110)
    assert "spike in steps 100-110" in lbw("show", tmp_path / "a").stdout
