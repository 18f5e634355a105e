"""The report as data: well-formed, self-contained, escaped, discreet, bounded; and what it says of planted runs."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lbw_sim import GuardSpec, Reason, Regime, Telemetry
from lbw_sim.guard.spec import preset_names
from lbw_sim.report import ReportOptions, aside, build, build_report, write_report
from lbw_sim.report.findings import examine, without_paths, workable
from lbw_sim.report.html import VOID
from lbw_sim.report.moments import choose, numbers
from lbw_sim.report.sight import look
from lbw_sim.score.learning_rates import place_in_grid
from lbw_sim.trace import Label, Recorder, Trace, read_trace, read_traces, write_labels

SHIPPED = Path(__file__).parent.parent.parent / "traces" / "tiny"
nan = float("nan")

HOSTILE = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> & $\\frac$ $x$ \x00\x1b"
RULES = {name: GuardSpec.load(name) for name in ("zscore", "zclip", "never")}


def record(
    folder: Path, run_id: str, loss: np.ndarray, *, spec: GuardSpec | None = None, labels: tuple[Label, ...] = (),
    mode: str = "shadow", lr: float = 1e-3, event: str = "", **provenance: object,
) -> Trace:  # fmt: skip
    """A run recorded row by row through a guard."""
    spec = spec or GuardSpec.load("default")
    guard = spec.build()
    state, before = guard.init(), guard.not_yet
    with Recorder.open(folder, run_id, spec=spec, mode=mode, provenance=provenance) as recorder:
        for step, value in enumerate(loss.tolist()):
            now = Telemetry(step, value, lr, nonfinite=float(not np.isfinite(value)))
            state, decision = guard.step(state, guard.seen(now, before))
            before = now
            applied = lr if mode == "shadow" else lr * decision.scale
            recorder.append(
                now, decision, elapsed_s=0.1 * step, effective_lr=applied, event=event if step == 5 else ""
            )  # fmt: skip
    if labels:
        write_labels(folder / f"run_id={run_id}", labels)
    return read_trace(folder / f"run_id={run_id}")


def falling(rows: int = 300, *, bump: int | None = None, seed: int = 0) -> np.ndarray:
    """A healthy loss, with 12 rows of a large rise when asked for."""
    loss = 2.0 + 3.0 * np.exp(-np.arange(rows) / 80.0) + 0.02 * np.random.default_rng(seed).standard_normal(rows)
    if bump is not None:
        loss[bump : bump + 12] += 2.0
    return loss


class Page(HTMLParser):
    """Reads a page strictly: every element closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.css = ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.css += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    folder = tmp_path_factory.mktemp("hostile")
    spec = GuardSpec(HOSTILE, GuardSpec.load("default").tables)
    more = {
        "host": "secret-machine", "data_dir": "/home/somebody/corpus/a.txt", "platform": "Linux-x86_64",
        "python": "3.99.0", "imported": 1, "lost": f"3 rows of /mnt/disk/log.csv; {HOSTILE}", "seed": 7,
    }  # fmt: skip
    record(
        folder, "a", falling(bump=200), spec=spec, event="<b>$x$ $\\frac$",
        labels=(Label(200, 211, "spike", note=f"{HOSTILE} in /scratch/me/log"),),
        architecture=HOSTILE, method=HOSTILE, peak_lr=1e-3, **more,
    )  # fmt: skip
    record(folder, "b", falling(seed=1), architecture=HOSTILE, method=HOSTILE, peak_lr=1e-2, **more)
    return read_traces(folder)


@pytest.fixture(scope="module")
def hostile(hostile_runs: list[Trace]) -> str:
    spec = GuardSpec(HOSTILE, GuardSpec.load("zscore").tables)
    return build_report(hostile_runs, ReportOptions(rules={**RULES, HOSTILE: spec}, title=HOSTILE)).html


def test_the_page_is_well_formed_and_holds_nothing_that_runs_or_loads(hostile: str) -> None:
    page = Page(hostile)
    assert not set(page.tags) & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "a:href",
    }
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "src"
        assert name != "href" or value.startswith("#"), f"{tag} leads to {value}"
        assert "javascript:" not in value.lower()
    assert not re.search(r"url\((?!#)|@import|https?://", page.css + " ".join(v for _, _, v in page.attributes))
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert page.tags["style"] == 1, "a style sheet in a figure would count for the whole page"


def test_hostile_words_stand_in_the_page_as_they_were_written(hostile: str) -> None:
    text = Page(hostile).text
    shown = " ".join(HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").split())
    # title, heading, guard, label, suspicion, provenance, rule
    assert text.count(shown) >= 6
    assert "<b>$x$ $\\frac$" in text, "an event is drawn as text, not as a formula"
    assert "\x00" not in hostile


def test_every_id_is_there_once_and_every_reference_leads_somewhere(hostile: str) -> None:
    page = Page(hostile)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href"}
    targets |= set(re.findall(r"url\(#([^)]+)\)", hostile))
    assert len(targets) > 20
    assert targets <= set(ids)


def test_figures_have_no_colour_that_the_dark_page_does_not_know(hostile: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", hostile, flags=re.S))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", re.sub(r"<text.*?</text>", "", drawings)) == []
    css = Page(hostile).css
    used = set(re.findall(r"var\((--f-[0-9a-f]{6})\)", drawings))
    light, dark = css.split("prefers-color-scheme:dark")
    assert used
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)
    assert "DARK_VARIABLES" not in css


def test_the_same_runs_make_the_same_page(hostile_runs: list[Trace]) -> None:
    options = ReportOptions(rules={"zscore": GuardSpec.load("zscore")})
    assert build_report(hostile_runs[:1], options).html == build_report(hostile_runs[:1], options).html


def test_host_paths_and_environment_are_left_out_unless_asked_for(hostile: str, hostile_runs: list[Trace]) -> None:
    private = (
        "secret-machine",
        "/home/somebody",
        "/mnt/disk",
        "/scratch/me",
        "Linux-x86_64",
        "3.99.0",
        str(SHIPPED.parent),
    )
    assert not any(word in hostile for word in private)
    assert "not all could be read: 3 rows of (path)" in hostile
    assert "4 entries that may tell where the run was made left out" in hostile
    told = build_report(hostile_runs, ReportOptions(environment=True)).html
    assert all(word in told for word in private[:-1])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("C:\\Users\\x\\run.csv is full", "(path) is full"),
        ("from s3://bucket/a/b and ../x/y", "from (path) and (path)"),
        ("~/runs/a.csv", "(path)"),
        ("1/2 of 3 rows; train/loss is nan; and/or", "1/2 of 3 rows; train/loss is nan; and/or"),
    ],
)
def test_what_looks_like_a_path_is_replaced(text: str, wanted: str) -> None:
    assert without_paths(text) == wanted


def test_the_page_claims_no_gain() -> None:
    some = read_traces(SHIPPED)[:3]
    words = Page(build_report(some, ReportOptions(rules=RULES, details=1)).html).text.lower()
    assert "can't tell what the loss would have been" in words
    assert not re.search(r"\bsav(e|ed|es|ings)\b|\bprevent|\bbenefit|\bimprov|\bwould have gained|\brescue", words)


def test_recorded_runs_are_shown_as_recorded_and_others_are_replayed(tmp_path: Path) -> None:
    loss = falling(bump=200)
    record(tmp_path, "watched", loss, mode="active")
    record(tmp_path, "null", loss, spec=GuardSpec.load("never"))
    record(tmp_path, "imported", loss, spec=GuardSpec.load("never"), imported=1)
    traces = read_traces(tmp_path)

    def views(guard: GuardSpec | None) -> dict[str, tuple[str, str, int]]:
        found = examine(traces, guard=guard, fallback=GuardSpec.load("default"), rules={})
        return {run.run_id: (run.view, run.guard, run.score.counts.alarms) for run, _ in found}

    assert views(None) == {
        "imported": ("replayed", "default", 1), "null": ("replayed", "default", 1),
        "watched": ("recorded", "default", 1),
    }  # fmt: skip
    assert set(views(GuardSpec.load("never")).values()) == {("replayed", "never", 0)}
    text = Page(build_report(traces, ReportOptions()).html).text
    assert "default, active" in text
    assert "default, replayed" in text


def test_rules_are_told_with_what_they_asked_for_and_those_without_a_channel_are_refused(tmp_path: Path) -> None:
    trace = record(tmp_path, "run", falling(bump=200), labels=(Label(200, 211, "spike"),))
    ((run, _),) = examine([trace], guard=None, fallback=GuardSpec.load("default"), rules=RULES)
    assert [rule.name for rule in run.rules] == ["zscore", "never"]
    zscore, never = run.rules
    assert zscore.first_step == 200
    assert zscore.first_regime == "SPIKE"
    assert (zscore.score.counts.detected, zscore.score.counts.false_alarms) == (1, 0)
    assert zscore.requested_energy > 0.0
    assert (never.alarms, never.first_step, never.min_scale) == ((), None, 1.0)
    assert [(item.name, item.missing) for item in run.refused] == [("zclip", ("grad_norm",))]
    assert (
        "zclip needs grad_norm, which this run does not hold" in build_report([trace], ReportOptions(rules=RULES)).html
    )


def test_budgets_say_how_near_the_run_came_to_each_limit(tmp_path: Path) -> None:
    spec = GuardSpec.load("default").with_changes({"envelope.min_scale": 0.5})
    trace = record(tmp_path, "run", falling(bump=200), spec=spec)
    ((run, columns),) = examine([trace], guard=None, fallback=spec, rules={})
    budgets = {item.limit: item for item in run.budgets}
    damped = columns["scale"] < 1.0
    assert budgets["lowest scale"][1:] == (0.5, 0.5, int((columns["reason"] == Reason.MIN_SCALE).sum()))
    assert budgets["lowest scale"].rows_refused > 0
    assert budgets["longest damping, rows"].used == damped.sum()
    assert budgets["control energy in 1,000 steps"].used == pytest.approx(((1 - columns["scale"]) ** 2).sum())
    assert budgets["rollbacks"][1:] == (0, 0, 0)


def test_a_moment_tells_the_signal_that_decided(tmp_path: Path) -> None:
    trace = record(tmp_path, "run", falling(bump=200), labels=(Label(200, 211, "spike"), Label(60, 70, "spike")))
    ((run, columns),) = examine([trace], guard=None, fallback=GuardSpec.load("default"), rules={})
    moments = choose(run, columns["regime"], most=4)
    assert [(moment.verdict, moment.kind) for moment in moments] == [("missed", "spike"), ("event", moments[1].kind)]
    sight = look(trace.meta.spec.build(), columns, columns["regime"])
    assert sight is not None
    told = numbers(moments[1], columns, sight)
    assert told.deciding in ("loss_z", "loss_rise")
    assert told.evidence == sight.signals[told.deciding][moments[1].first_row]
    offsets = [offset for offset, _ in told.rows]
    assert offsets == [-2, -1, 0, 1, 2, 5]
    assert told.rows[2][1][0] == float(columns["step"][moments[1].first_row])
    assert told.rows[2][1][-2] == Regime[moments[1].kind].name.lower()


def test_signals_that_do_not_lead_to_the_recorded_regimes_are_not_shown(tmp_path: Path) -> None:
    trace = record(tmp_path, "run", falling(bump=200))
    columns = trace.to_numpy()
    regimes = columns["regime"].copy()
    regimes[250] = Regime.SPIKE
    assert look(trace.meta.spec.build(), columns, regimes) is None


def test_at_most_so_many_moments_and_missed_events_take_half_of_them(tmp_path: Path) -> None:
    loss = falling(900)
    for start in range(300, 900, 60):
        loss[start : start + 8] += 2.0
    labels = tuple(Label(start, start + 3, "spike") for start in (40, 60, 80, 100))
    trace = record(tmp_path, "run", loss, labels=labels)
    ((run, columns),) = examine([trace], guard=None, fallback=GuardSpec.load("default"), rules={})
    assert run.score.counts.alarms >= 6
    moments = choose(run, columns["regime"], most=6)
    assert [moment.verdict for moment in moments] == ["missed"] * 3 + ["false"] * 3
    assert moments == sorted(moments)


def test_many_runs_get_a_line_each_and_the_noteworthy_a_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "MOST_COMPARED", 2)
    for number in range(4):
        record(tmp_path, f"calm{number}", falling(seed=number))
    record(tmp_path, "bumped", falling(bump=200), labels=(Label(200, 211, "spike"),))
    broken = falling()
    broken[150:] = nan
    record(tmp_path, "broken", broken)
    report = build_report(read_traces(tmp_path), ReportOptions(rules=RULES, details=2))
    assert report.detailed == ("broken", "bumped")
    page = Page(report.html)
    assert "2 of 6 runs have a section of their own" in page.text
    assert "1 run with a loss or gradient that is not finite: broken" in page.text
    assert all(run.run_id in page.text for run in report.runs)
    assert build_report(read_traces(tmp_path), ReportOptions(details=0)).detailed == ()


def test_a_long_run_is_drawn_small_and_its_one_row_spike_is_still_there(tmp_path: Path) -> None:
    loss = falling(30_000)
    loss[17_777] = 9.0
    spec = GuardSpec.load("never")
    trace = record(tmp_path, "long", loss, spec=spec)
    report = build_report([trace], ReportOptions(guard=spec))
    assert len(report.html) < 400_000
    drawing = next(part for part in re.findall(r"<svg.*?</svg>", report.html, flags=re.S) if "over its steps" in part)
    assert "above the frame: up to 9" in drawing


def test_odd_runs_make_a_page_too(tmp_path: Path) -> None:
    odd = {
        "one": np.array([3.0]), "two": np.array([3.0, 2.0]), "constant": np.full(150, 2.0), "nan": np.full(150, nan),
        "infinite": np.concatenate([falling(100), np.full(50, np.inf)]), "negative": np.linspace(1.0, -3.0, 150),
        "zero": np.zeros(150), "huge": np.concatenate([np.full(75, 1e300), np.full(75, 1e-300)]),
    }  # fmt: skip
    for run_id, loss in odd.items():
        labels = (Label(100, 149, "nonfinite"), Label(5_000, 6_000, "spike")) if run_id == "infinite" else ()
        record(tmp_path, run_id, loss, labels=labels, peak_lr="no number")
    report = build_report(read_traces(tmp_path), ReportOptions(rules=RULES, moments=1))
    assert set(Page(report.html).text.split()) >= set(odd)
    assert len(report.detailed) == len(odd)


def test_a_grid_of_learning_rates_becomes_a_table_and_a_figure(tmp_path: Path) -> None:
    for method, ends in {"adamw": (2.0, 4.0), "guard": (2.5, nan)}.items():
        for peak_lr, end in zip((1e-3, 1e-2), ends, strict=True):
            loss = np.concatenate([np.full(50, 5.0), np.full(150, end)])
            record(
                tmp_path, f"{method}-{peak_lr:g}", loss, architecture="tiny", method=method, peak_lr=peak_lr, seed=0
            )  # fmt: skip
    page = Page(build_report(read_traces(tmp_path), ReportOptions(details=0)).html)
    # sensitivity: mean of (2, 4) - 2 and of (2.5, 5) - 2: a run that is lost counts as its start
    assert "tiny: 4 runs" in page.text
    assert re.search(r"adamw\s*2\.000\s*4\.000\s*1\.000", page.text)
    assert re.search(r"guard\s*2\.500\s*not finite\s*1\.750", page.text)
    assert any(
        "final loss against learning rate" in value for _, name, value in page.attributes if name == "aria-label"
    )


def test_a_grid_is_found_in_run_ids_when_asked_for() -> None:
    pattern = "(?P<method>[a-z]+)_lr(?P<peak_lr>[^_]+)_s(?P<seed>.+)"
    assert place_in_grid("adamw_lr3e-4_s1", {}, pattern) == ("", "adamw", 3e-4, "1")
    assert place_in_grid("adamw_lrhigh_s1", {}, pattern) is None
    assert place_in_grid("other", {"peak_lr": 1e-3}, pattern) is None
    assert place_in_grid("other", {}) is None


def test_all_presets_over_a_run_and_a_page_that_is_written(tmp_path: Path) -> None:
    rules = {name: GuardSpec.load(name) for name in preset_names()}
    trace = read_trace(SHIPPED, run_id="postln_lr_bump_active_s7")
    path = write_report(build_report([trace], ReportOptions(rules=rules)), tmp_path / "new" / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert all(name in page.text for name in rules)
    assert "default, active" in page.text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a headless chromium")
def test_chromium_renders_the_page_light_and_dark_and_prints_it(hostile: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    (tmp_path / "page.html").write_text(hostile, encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--window-size=1280,1500",
    ]  # fmt: skip

    def chromium(*more: str) -> None:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = ["chromium", *flags, profile, *more, (tmp_path / "page.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    chromium(f"--screenshot={tmp_path / 'light.png'}")
    chromium(f"--screenshot={tmp_path / 'dark.png'}", "--blink-settings=preferredColorScheme=0")
    chromium(f"--print-to-pdf={tmp_path / 'page.pdf'}")
    light, dark = (imread(tmp_path / f"{name}.png")[..., :3].mean() for name in ("light", "dark"))
    assert light > 0.85
    assert dark < 0.3
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_second_process_draws_what_this_one_would_and_is_not_missed_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [record(tmp_path, f"run{seed}", falling(bump=200, seed=seed)) for seed in range(2)]
    options = ReportOptions(rules={"never": RULES["never"]}, moments=1)
    alone = build_report(traces, options).html
    assert 'id="run-2"' in alone
    monkeypatch.setattr(build, "worth_it", lambda sections, rows: True)
    drawn_here: list[str] = []
    here = build._run_section
    monkeypatch.setattr(build, "_run_section", functools.wraps(here)(lambda *a: drawn_here.append(a[2]) or here(*a)))
    # pickled by name, so that the other process takes the real one
    assert build_report(traces, options).html == alone
    assert drawn_here == ["run-1"]
    monkeypatch.setattr(aside, "_PROGRAM", "raise SystemExit(1)")
    assert build_report(traces, options).html == alone
    assert drawn_here == ["run-1", "run-1", "run-2"]


def test_a_rule_without_its_channel_in_any_run_is_refused_and_not_replayed(tmp_path: Path) -> None:
    trace = record(tmp_path, "run", falling())
    rules = {name: GuardSpec.load(name) for name in ("never", "paired_rollback")}
    assert workable(rules, [trace]) == ["never"]
    ((run, _),) = examine([trace], guard=None, fallback=GuardSpec.load("default"), rules=rules)
    assert [rule.name for rule in run.rules] == ["never"]
    assert [refused.name for refused in run.refused] == ["paired_rollback"]


def test_wide_figures_are_drawn_a_second_time_for_a_phone(tmp_path: Path) -> None:
    traces = [record(tmp_path, f"run{seed}", falling(seed=seed)) for seed in range(2)]
    html = build_report(traces, ReportOptions(rules={"never": RULES["never"]}, details=1)).html
    widths = re.findall(r'class="(wide paired|narrow)"><svg viewBox="0 0 ([\d.]+) ', html)
    assert [kind for kind, _ in widths] == ["wide paired", "narrow"] * 2
    # a point is a unit of the drawing: at 366 px beside margins of 12 px, letters keep their size
    assert all(float(width) < 366.0 for kind, width in widths if kind == "narrow")
    assert "@media screen and (max-width:560px){.paired{display:none}.narrow{display:block}}" in html
