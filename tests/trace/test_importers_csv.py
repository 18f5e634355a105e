"""Logged runs become traces that replay, verify and score; a log that cannot be one is refused with its row."""

from __future__ import annotations

import bz2
import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lbw_sim.cli.app import app
from lbw_sim.errors import LbwError, TraceError
from lbw_sim.replay import verify
from lbw_sim.trace import Label, read_trace, read_traces
from lbw_sim.trace.importers import Imported, import_path
from lbw_sim.trace.importers.hand_labels import read_hand_labels
from lbw_sim.trace.importers.logged import LoggedRun, Rows, run_id_from
from lbw_sim.trace.importers.record import record

REAL_RUNS = Path(__file__).parents[3] / "shared" / "data" / "real-runs"


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def import_csv(
    file: Path, out: Path, *, columns: dict[str, str] | None = None, labels: list[Label] | None = None
) -> Imported:
    known = None if labels is None else {run_id_from(file): labels}
    (imported,) = import_path(file, out, source="csv", columns=columns, labels=known).runs
    return imported


def columns(out: Path, run_id: str = "run", lineage: str = "final") -> dict[str, list[object]]:
    return {k: v.tolist() for k, v in read_trace(out, run_id).to_numpy(lineage).items()}  # type: ignore[arg-type]


def facts(out: Path, run_id: str = "run") -> dict[str, object]:
    return dict(read_trace(out, run_id).meta.provenance)


def test_a_csv_becomes_a_shadow_run_of_never_that_verifies_and_says_where_it_is_from(tmp_path: Path) -> None:
    file = write(tmp_path / "run.csv", "step,loss,lr,grad_norm,time_s\n10,5.25,0.001,1.5,2.0\n20,5.0,0.001,,4.5\n")
    imported = import_csv(file, tmp_path / "out")
    assert (imported.run_id, imported.rows, imported.cadence_steps) == ("run", 2, 10.0)
    assert imported.suspicions == ("logged every 10 steps: what happened between is not seen",)
    trace = read_trace(tmp_path / "out")
    assert (trace.meta.spec.name, trace.meta.mode) == ("never", "shadow")
    assert verify(trace).rows == 2
    found = columns(tmp_path / "out")
    assert found["step"] == [10, 20]
    assert found["loss"] == [5.25, 5.0]
    assert found["lr"] == found["effective_lr"] == [0.001, 0.001]
    assert found["elapsed_s"] == [2.0, 4.5]
    assert found["nonfinite"] == [0.0, 0.0]
    assert found["grad_norm"][0] == 1.5
    assert math.isnan(found["grad_norm"][1])  # type: ignore[arg-type]
    known = facts(tmp_path / "out")
    assert {name: known[name] for name in ("imported", "source", "cadence", "loss_decimals", "attempts")} == {
        "imported": 1, "source": "run.csv", "cadence": "every 10 steps", "loss_decimals": 2, "attempts": 1,
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(known), "a trace names no folder of the machine that imported it"


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [(1, 5.5, 0.1), (2, 0.1 + 0.2, 0.2), (3, 1e-17, 0.3)]
    text = "".join(f"{step},{loss!r},{lr!r}\n" for step, loss, lr in rows)
    plain = write(tmp_path / "a.csv", "Step,Loss,Learning Rate\n" + text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    write(tmp_path / "c.tsv", plain.read_text().replace(",", "\t"))
    write(tmp_path / "d.csv", plain.read_text().replace(",", ";"))
    lines = "".join(json.dumps({"step": s, "loss": v, "learning_rate": r}) + "\n\n" for s, v, r in rows)
    (tmp_path / "e.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    step, loss, lr = zip(*rows, strict=True)
    pq.write_table(pa.table({"_step": step, "train/loss": loss, "lr": lr, "note": ["x"] * 3}), tmp_path / "f.parquet")
    write(tmp_path / "g.csv", "\ufeff" + plain.read_text().replace("\n", "\r\n"))
    for file in sorted(tmp_path.iterdir()):
        import_csv(file, tmp_path / "out")
    for trace in read_traces(tmp_path / "out"):
        found = trace.to_numpy()
        assert found["step"].tolist() == [1, 2, 3], trace.run_id
        assert found["loss"].tolist() == list(loss), trace.run_id
        assert found["lr"].tolist() == list(lr), trace.run_id
    assert [trace.run_id for trace in read_traces(tmp_path / "out")] == list("abcdefg")


@pytest.mark.parametrize(
    "header",
    [
        "iteration,lm loss,learning-rate,grad-norm",
        "trainer/global_step,train_loss,learning_rate,grad_norm",
        "_step,train/loss,train/learning_rate,train/grad_norm",
    ],
)
def test_columns_are_found_by_the_names_that_logs_use(header: str, tmp_path: Path) -> None:
    import_csv(write(tmp_path / "run.csv", f"{header}\n1,5.5,0.1,2.0\n"), tmp_path / "out")
    found = columns(tmp_path / "out")
    assert [found[name] for name in ("step", "loss", "lr", "grad_norm")] == [[1], [5.5], [0.1], [2.0]]


def test_a_column_named_by_option_wins_and_the_likelier_name_comes_first(tmp_path: Path) -> None:
    text = "step,loss,train_loss,ppl,y\n1,5.5,6.5,9.0,7.5\n"
    import_csv(write(tmp_path / "run.csv", text), tmp_path / "out")
    import_csv(write(tmp_path / "named.csv", text), tmp_path / "out", columns={"loss": "y"})
    assert columns(tmp_path / "out", "run")["loss"] == [5.5]
    assert columns(tmp_path / "out", "named")["loss"] == [7.5]


def test_a_file_of_several_runs_is_taken_apart_by_its_column_of_names(tmp_path: Path) -> None:
    text = "run_name,step,timestamp,loss\n" + "".join(
        f"{name},{step},2025-01-01T00:00:0{step},{loss}\n"
        for step in range(3)
        for name, loss in (("a/b", 2.5 + step), ("c", 5.5 + step))
    )
    runs = import_path(write(tmp_path / "export.csv", text), tmp_path / "out").runs
    assert [(run.run_id, run.rows) for run in runs] == [("a-b", 3), ("c", 3)]
    assert columns(tmp_path / "out", "c")["loss"] == [5.5, 6.5, 7.5]
    assert columns(tmp_path / "out", "a-b")["elapsed_s"] == [0.0, 1.0, 2.0]


def test_a_panel_that_wandb_exported_holds_a_run_per_column_and_is_a_sample(tmp_path: Path) -> None:
    names = ["owl 1 - train/loss", "owl 1 - train/loss__MIN", "owl 1 - train/loss__MAX", "fox - 2 - train/loss"]
    text = '"Step",' + ",".join(f'"{name}"' for name in names) + '\n"0","5.5","5.5","5.5",""\n"7","4.5","4","5","3.5"\n'
    runs = import_path(write(tmp_path / "panel.csv", text), tmp_path / "out").runs
    assert [(run.run_id, run.rows) for run in runs] == [("owl-1", 2), ("fox---2", 1)]
    assert columns(tmp_path / "out", "owl-1")["loss"] == [5.5, 4.5]
    assert runs[0].suspicions[0].startswith("a sample of the logged rows and not all of them")


def test_nan_and_infinity_are_measured_and_an_empty_cell_is_not(tmp_path: Path) -> None:
    text = "step,loss,grad_norm\n0,2.0,1.0\n1,nan,1.0\n2,-inf,1.0\n3,,1.0\n4,2.0,inf\n5,N/A,nan\n"
    imported = import_csv(write(tmp_path / "run.csv", text), tmp_path / "out")
    found = columns(tmp_path / "out")
    assert [str(v) for v in found["loss"]] == ["2.0", "nan", "-inf", "nan", "2.0", "nan"]
    assert [str(v) for v in found["nonfinite"]] == ["0.0", "1.0", "1.0", "nan", "1.0", "1.0"]
    known = facts(tmp_path / "out")
    assert (known["missing_losses"], known["nonfinite_losses"]) == (1, 4)
    assert imported.suspicions == ("1 row has no loss",)


def test_a_file_without_a_single_loss_was_nan_throughout(tmp_path: Path) -> None:
    imported = import_csv(write(tmp_path / "run.csv", "step,loss,lr\n1,,0.1\n2,,0.1\n"), tmp_path / "out")
    assert columns(tmp_path / "out")["nonfinite"] == [1.0, 1.0]
    assert imported.suspicions == ("no loss is a number: empty ones are taken for nan that the writer left blank",)
    assert "loss" in read_trace(tmp_path / "out").channels


def test_rows_that_are_no_steps_are_left_out(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 1, "eval_loss": 2.0}, {"step": 2, "loss": 2.4, "lr": 0.1}]
    lines.append({"step": 9, "eval_loss": 1.0})
    write(tmp_path / "run.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert import_csv(tmp_path / "run.jsonl", tmp_path / "out").rows == 2
    assert columns(tmp_path / "out")["step"] == [1, 2]


def test_a_step_that_does_not_rise_starts_a_new_attempt_and_the_last_one_counts(tmp_path: Path) -> None:
    text = "step,loss\n1,5.0\n2,4.0\n3,9.0\n2,3.5\n3,3.0\n"
    imported = import_csv(write(tmp_path / "run.csv", text), tmp_path / "out")
    assert columns(tmp_path / "out")["loss"] == [5.0, 3.5, 3.0]
    assert columns(tmp_path / "out", lineage="all")["attempt"] == [0, 0, 0, 1, 1]
    assert imported.suspicions == (
        "the step does not rise at row 4: step 3 -> 2 (1 in all): the last row of a step counts",
    )
    assert verify(read_trace(tmp_path / "out")).rows == 5


def test_steps_that_begin_anew_in_each_epoch_are_told(tmp_path: Path) -> None:
    rows = "".join(
        f"{epoch},{step},{epoch * 20 + step},{math.sqrt(2.0 + step)}\n" for epoch in range(3) for step in range(20)
    )
    file = write(tmp_path / "run.csv", "epoch,step,count,loss\n" + rows)
    (said,) = import_csv(file, tmp_path / "out").suspicions
    assert said.startswith("the step does not rise at row 21: step 19 -> 0 (2 in all)")
    assert "all epochs but the last are out of sight: name a column that counts on by --step" in said
    counted = import_csv(file, tmp_path / "counted", columns={"step": "count"})
    assert (counted.suspicions, len(columns(tmp_path / "counted")["step"])) == ((), 60)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "jsonl.gz"])
def test_a_last_line_that_was_cut_short_is_left_out_and_told(ending: str, tmp_path: Path) -> None:
    text = "step,loss,lr\n1,3.0,0.1\n2,2.5,0.1\n3,2.2"
    if ending != "csv":
        text = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo'
    file = tmp_path / f"run.{ending}"
    file.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    imported = import_csv(file, tmp_path / "out")
    assert columns(tmp_path / "out")["loss"] == [3.0, 2.5]
    assert imported.suspicions == ("not all could be read: the last line was cut short",)


def test_rows_of_another_split_than_training_are_left_out(tmp_path: Path) -> None:
    rows = [f"{run},{step},{split},{loss}" for run in "ab" for step in (1, 2) for split, loss in
            (("train", step + 1.0), ("val", step + 9.0))]  # fmt: skip
    write(tmp_path / "both.csv", "run,step,Split,loss\n" + "\n".join(rows) + "\n")
    import_path(tmp_path / "both.csv", tmp_path / "out")
    assert columns(tmp_path / "out", "a")["loss"] == columns(tmp_path / "out", "b")["loss"] == [2.0, 3.0]
    # a column of that name that tells no training from anything
    write(tmp_path / "run.csv", "step,mode,loss\n1,fast,2.0\n2,slow,1.5\n")
    import_csv(tmp_path / "run.csv", tmp_path / "one")
    assert columns(tmp_path / "one")["loss"] == [2.0, 1.5]


def test_a_json_array_is_not_taken_for_a_csv(tmp_path: Path) -> None:
    file = write(tmp_path / "run.json", '[{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]')
    with pytest.raises(TraceError, match="not recognised as any of"):
        import_path(file, tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_compressed_log_that_was_cut_short_is_said_to_be_and_what_to_do(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    text = "step,loss,lr\n" + "".join(f"{i},{3.0 - i * 1e-5:.6f},{i * 7919 % 100_003}\n" for i in range(60_000))
    whole = pack(text.encode())
    for name, size in (("early", 2_000), ("late", len(whole) - 50)):  # recognised only when its first megabyte is there
        file = tmp_path / f"{name}.csv.gz"
        file.write_bytes(whole[:size])
        for source in (None, "csv"):
            with pytest.raises(TraceError, match=rf"{name}\.csv\.gz.*cannot be .*cut short.*copy it again, or unpack"):
                import_path(file, tmp_path / "out", source=source)
    reasons = [item.reason for item in import_path(tmp_path, tmp_path / "out").passed_over]
    assert len(reasons) == 2
    assert all("cut short" in reason for reason in reasons)


def test_a_run_whose_chosen_columns_are_empty_says_which_they_were(tmp_path: Path) -> None:
    file = write(tmp_path / "run.csv", "step,loss,my_loss\n1,,3.0\n2,,2.5\n")
    with pytest.raises(TraceError, match="Read were 'step' as step, 'loss' as loss: where another column"):
        import_csv(file, tmp_path / "out")
    import_csv(file, tmp_path / "out", columns={"loss": "my_loss"})


def test_attempts_go_on_over_the_edges_of_chunks(tmp_path: Path) -> None:
    def rows() -> Iterator[Rows]:
        for step, loss in ((1, 5.0), (2, 4.0), (2, 3.5), (1, 3.0), (2, 2.5)):
            yield Rows(np.array([step]), {"loss": np.array([loss])}, {"loss": np.array([True])})

    record(LoggedRun("run", "here", {"loss": "loss"}, rows), tmp_path / "out", importer="test")
    assert columns(tmp_path / "out", lineage="all")["attempt"] == [0, 0, 1, 2, 2]
    assert columns(tmp_path / "out")["loss"] == [3.0, 2.5]
    assert verify(read_trace(tmp_path / "out")).rows == 5


def test_steps_in_no_order_are_refused_with_the_first_row(tmp_path: Path) -> None:
    text = "step,loss\n" + "1,2.0\n2,2.0\n" * 22
    with pytest.raises(TraceError, match=r"does not rise at 21 of 44 rows, first at row 3: step 2 -> 1\. Not one run"):
        import_csv(write(tmp_path / "run.csv", text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rounding_zeros_and_repeats_are_told(tmp_path: Path) -> None:
    rounded = "".join(f"{step},{3 - 0.01 * step:.2f}\n" for step in range(50))
    held = "".join(f"{step},{3 - 0.012345 * (step // 5) if step != 40 else 0}\n" for step in range(50))
    first = import_csv(write(tmp_path / "rounded.csv", "step,loss\n" + rounded), tmp_path / "out")
    second = import_csv(write(tmp_path / "held.csv", "step,loss\n" + held), tmp_path / "out")
    assert first.suspicions == ("losses have at most 2 decimals: noise below that is rounding",)
    assert second.suspicions == (
        "1 loss is exactly 0: a nan may have been logged as 0",
        "39 losses repeat the one before: a filter may hide nan, or losses are held",
    )


def test_a_unix_time_becomes_time_since_the_first_row_and_a_token_total_is_told(tmp_path: Path) -> None:
    text = "step,loss,tokens,timestamp\n" + "".join(f"{i},2.5,{i * 512},{1.7e9 + i}\n" for i in range(1, 13))
    imported = import_csv(write(tmp_path / "run.csv", text), tmp_path / "out")
    assert columns(tmp_path / "out")["elapsed_s"] == [float(i) for i in range(12)]
    assert imported.suspicions[-1] == "tokens rise at every row: a running total rather than tokens per step"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.csv", "", "cannot be read: Empty CSV file"),
        ("run.csv", "step,loss\n", "holds no row"),
        (
            "run.csv",
            "a,b\n1,2\n",
            "no column looks like the step: it has a, b. Name it by --step; no column looks like",
        ),
        ("run.csv", "step,loss\n1,2\n2,abc\n", "row 2, column 'loss': 'abc' is not a number"),
        ("run.csv", "step,loss\n1,1_000\n", "row 1, column 'loss': '1_000' is not a number"),
        ("run.csv", "step,loss\n1.5,2\n", "row 1: step 1.5 is not a whole number"),
        ("run.csv", "step,loss\n-1,2\n", "row 1: step -1.0 is not a whole number from 0 on"),
        ("run.csv", "step,loss\nnan,2\n", "row 1: step nan is not a whole number"),
        ("run.csv", "step,loss\n1e300,2\n", "step 1e\\+300 is not a whole number"),
        ("run.csv", "step,loss\n,2\n", "row 1: no step there. If another column counts steps"),
        ("run.csv", "step,loss\n1,2\n1,2,3\n", "cannot be read: CSV parse error"),
        ("run.csv", "step,loss,loss\n1,2,3\n", "column 'loss' is there 2 times"),
        ("run.jsonl", '{"step": 1, "loss": 2}\n{"step": 2,\n', "line 2 is not JSON"),
        ("run.jsonl", "[1, 2]\n", "line 1: a JSON object is needed"),
        ("run.jsonl", '{"step": 1, "loss": true}', "column 'loss': 'True' is not a number"),
        ("run.jsonl", '{"step": 1, "loss": [2]}', r"column 'loss': '\[2\]' is not a number"),
        ("run.jsonl", '{"step": 1, "loss": 1' + "0" * 400 + "}", "column 'loss': '10000000000000"),
        ("run.jsonl", '{"step": "' + "1" * (3 << 20), "line 1: longer than 1048576 bytes"),
        ("run.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("run.parquet", "PAR1 this is none PAR1", "cannot be read"),
        ("run.csv.gz", "not gzip", "cannot be read"),
        ("run.xlsx", "x", "neither a header with a step, JSON lines nor Parquet"),
        ("....csv", "step,loss\n1,2\n", "its name gives no run id"),
    ],
)
def test_a_file_that_is_no_run_is_refused_and_nothing_is_written(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match=message):
        import_csv(write(tmp_path / name, text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_bytes(b"\xff\xfestep,loss\n1,2\n")
    with pytest.raises(TraceError, match="cannot be read"):
        import_csv(tmp_path / "run.csv", tmp_path / "out")
    with pytest.raises(TraceError, match=r"gone\.csv cannot be read"):
        import_csv(tmp_path / "gone.csv", tmp_path / "out")


def test_a_run_that_is_there_already_is_not_added_to(tmp_path: Path) -> None:
    file = write(tmp_path / "run.csv", "step,loss\n1,2\n")
    import_csv(file, tmp_path / "out")
    with pytest.raises(TraceError, match=r"run 'run' is in .* already"):
        import_csv(file, tmp_path / "out")
    assert columns(tmp_path / "out")["step"] == [1]


def test_an_import_that_fails_half_way_leaves_no_run(tmp_path: Path) -> None:
    file = write(tmp_path / "run.csv", "step,loss\n1,2\n")
    with pytest.raises(TraceError, match="label 1: steps 5 to 2 are no stretch"):
        import_csv(file, tmp_path / "out", labels=[Label(5, 2, "spike")])
    assert list((tmp_path / "out").iterdir()) == []
    assert import_csv(file, tmp_path / "out", labels=[Label(1, 1, "spike")]).rows == 1


def test_a_run_that_another_import_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "run.csv", "step,loss\n1,2\n")
    rows = Rows(np.array([1]), {"loss": np.array([2.0])}, {"loss": np.array([True])})

    def while_another_imports() -> Iterator[Rows]:
        if not (tmp_path / "out").exists():
            import_csv(file, tmp_path / "out")
        yield rows

    mine = LoggedRun("run", "run.csv", {"loss": "loss"}, while_another_imports)
    with pytest.raises(TraceError, match=r"run 'run' is in .* already"):
        record(mine, tmp_path / "out", importer="csv")
    assert columns(tmp_path / "out")["loss"] == [2.0]


def test_a_file_name_becomes_an_id_that_stays_in_its_folder() -> None:
    assert run_id_from("a b/gptL_adamw_0.0001.csv") == "gptL_adamw_0.0001"
    assert run_id_from("x/Läufe (2).jsonl.gz") == "L-ufe-2"
    assert run_id_from("run_id=7.parquet") == "run_id-7"
    assert len(run_id_from("x" * 300 + ".csv")) == 128
    for bad in ("...csv", "é.csv", ".csv"):
        with pytest.raises(TraceError, match="gives no run id"):
            run_id_from(bad)


def test_hand_labels_come_with_the_runs(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "step,loss\n1,2\n2,3\n3,2\n")
    write(tmp_path / "b.csv", "step,loss\n1,2\n")
    label = {"start_step": 2.0, "peak_step": 2.0, "end_step": 3.0, "kind": "spike", "confidence": "medium"}
    write(tmp_path / "labels.json", json.dumps({"a": [label], "z": []}))
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    done = CliRunner().invoke(
        app, ["import", *files, "-o", str(tmp_path / "out"), "--labels", str(tmp_path / "labels.json")]
    )
    assert done.exit_code == 0, done.output
    assert "2 runs, 4 rows, 1 label in" in done.output
    assert read_trace(tmp_path / "out", "a").labels == (Label(2, 3, "spike", "medium", "hand", 2),)
    assert read_trace(tmp_path / "out", "b").labels == ()
    write(tmp_path / "notes.json", "[]")
    logs = ["import", str(tmp_path), "-o", str(tmp_path / "all"), "--labels", str(tmp_path / "labels.json")]
    done = CliRunner().invoke(app, logs)
    assert "not imported: notes.json" in done.output
    assert "not imported: labels.json" not in done.output, "it was read, as what it is"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "is not JSON"),
        ("[1]", 'expected {"run id"'),
        ('{"a": {"kind": 1}}', 'expected {"run id"'),
        ('{"a": [3]}', "run 'a': label 1 is not a JSON object"),
        ('{"a": [{"start_step": 5, "end_step": 2, "kind": "spike"}]}', "run 'a': label 1: steps 5 to 2"),
        ('{"a": [{"start_step": 5.5, "end_step": 7, "kind": "spike"}]}', "are whole numbers"),
        ('{"a": [{"start_step": 5, "end_step": 7, "kind": "spiky"}]}', "Did you mean 'spike'"),
    ],
)
def test_bad_label_files_are_refused_with_run_and_label(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        read_hand_labels(write(tmp_path / "labels.json", text))


def test_the_command_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.csv", "step,loss\n1,2\n"))
    out = ["-o", str(tmp_path / "out")]
    for arguments, message in [
        ([file, "--source", "cvs"], "no importer named 'cvs'"),
        ([file, "--loss", "los"], "no column named 'los'. Known: loss, step. Did you mean 'loss'"),
        ([file, file], "run 'a' is in"),
    ]:
        done = CliRunner().invoke(app, ["import", *arguments, *out])
        assert isinstance(done.exception, LbwError)
        assert message in str(done.exception)


def test_a_link_out_of_the_folder_is_named_and_not_silently_left_out(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    write(tmp_path / "logs" / "a.csv", "step,loss\n1,2\n")
    write(tmp_path / "elsewhere.csv", "step,loss\n1,2\n")
    (tmp_path / "logs" / "inside.csv").symlink_to("a.csv")
    (tmp_path / "logs" / "outside.csv").symlink_to(tmp_path / "elsewhere.csv")
    found = import_path(tmp_path / "logs", tmp_path / "out")
    assert [run.run_id for run in found.runs] == ["a"]
    assert [(item.path, item.reason[:6]) for item in found.passed_over] == [("outside.csv", "a link")]


@pytest.mark.skipif(not REAL_RUNS.is_dir(), reason="the 50 public runs are not shipped")
def test_the_fifty_public_runs_import_with_every_row_and_label(tmp_path: Path) -> None:
    index = json.loads((REAL_RUNS / "index.json").read_text())
    labels = read_hand_labels(REAL_RUNS / "labels.json")
    assert len(index) == 50
    for entry in index:
        imported = import_csv(REAL_RUNS / f"{entry['id']}.csv", tmp_path, labels=labels[entry["id"]])
        assert (imported.run_id, imported.rows) == (entry["id"], entry["rows"])
        assert facts(tmp_path, entry["id"])["cadence_steps"] == entry["logging_interval"]
    traces = read_traces(tmp_path)
    assert sum(len(trace.labels) for trace in traces) == sum(map(len, labels.values()))


@pytest.mark.parametrize("last", ["loss", "lr"])
def test_a_csv_that_is_being_written_never_gives_half_of_a_number(last: str, tmp_path: Path) -> None:
    names = ["step", "lr", "loss"] if last == "loss" else ["step", "loss", "lr"]
    rows = [{"step": step, "loss": f"{12.5 + step:.4f}", "lr": "1.5e-03"} for step in range(5)]
    text = ",".join(names) + "\n" + "".join(",".join(str(row[name]) for name in names) + "\n" for row in rows)
    for end in range(text.rstrip("\n").rfind("\n") + 2, len(text) + 1):
        (tmp_path / "log.csv").write_text(text[:end])
        found = import_path(tmp_path / "log.csv", tmp_path / f"out-{end}")
        columns = read_trace(tmp_path / f"out-{end}").to_numpy()
        whole = end >= len(text) - 1
        assert columns["loss"].tolist() == [12.5, 13.5, 14.5, 15.5, 16.5][: 5 if whole else 4]
        assert set(columns["lr"].tolist()) == {1.5e-3}
        assert any("cut short" in said for said in found.runs[0].suspicions) != whole


@pytest.mark.parametrize(("train", "held_out"), [("train", "val"), ("Training", "test"), (None, "eval")])
def test_rows_of_an_evaluation_do_not_take_the_place_of_a_step(
    train: str | None, held_out: str, tmp_path: Path
) -> None:
    lines = []
    for step in range(20):
        lines.append({"step": step, "loss": 3.0 - step / 100} | ({} if train is None else {"type": train}))
        if step % 5 == 0:
            lines.append({"step": step, "loss": 9.0, "type": held_out})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = import_path(tmp_path / "log.jsonl", tmp_path / "out")
    assert read_trace(tmp_path / "out").to_numpy()["loss"].tolist() == [3.0 - step / 100 for step in range(20)]
    assert not any("does not rise" in said for said in found.runs[0].suspicions)
