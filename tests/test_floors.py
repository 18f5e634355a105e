"""Imports go down one tower: each module has a floor and imports only from lower ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lbw_sim"

# the words that everybody speaks, and what is done with them along a recorded run
WORDS = {"errors", "wording", "notebook", "ledger", "whole_file", "cores", "values", "params"}
RUNS = {"guard", "trace", "replay"}
# what each part may import of this package (besides itself), lowest first
MAY_IMPORT = {
    "cores": set(),
    "errors": set(),
    "notebook": set(),
    "ledger": set(),
    "whole_file": set(),
    "wording": set(),
    "values": {"notebook"},
    "params": {"errors", "values"},
    "guard": WORDS,
    "trace": WORDS | {"guard"},
    "replay": WORDS | {"guard", "trace"},
    "simulate": WORDS | RUNS,
    "score": WORDS | {"trace"},
    "backtest": WORDS | RUNS | {"simulate", "score"},
    "tune": WORDS | RUNS | {"simulate", "score", "backtest"},
    "watch": WORDS | {"trace", "score"},
    "live": WORDS | {"guard", "trace"},
    "stress": WORDS | RUNS | {"score", "live"},
    "plots": WORDS | {"trace", "score"},
    "report": WORDS | RUNS | {"score", "plots"},
    "demo": WORDS | RUNS | {"score", "stress", "plots"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
# late, inside a function or for the type checker: {module: names}
UPWARD = {
    # a user at a notebook looks for the plot of a run on the run
    "trace/store.py": {"lbw_sim.plots"},
}
HEAVY = {"torch": {"live", "stress"}, "matplotlib": {"plots"}}
STANDARD_LIBRARY_ONLY = {"cores", "errors", "notebook", "ledger", "whole_file", "wording", "values", "params", "guard"}
ALLOWED_BESIDES = {"guard": {"tomli_w"}}


def modules() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
    ]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_lower_floors(path: Path) -> None:
    part = part_of(path)
    late = UPWARD.get(str(path.relative_to(PACKAGE)), set())
    for name in imported_names(path):
        if any(name == allowed or name.startswith(f"{allowed}.") for allowed in late):
            continue
        if name.startswith("lbw_sim."):
            other = name.split(".")[1]
            # `from lbw_sim import __version__`: the package's own front door counts as the lowest floor
            assert other == part or other in MAY_IMPORT[part] or other == "__version__", f"{part} imports {name}"
        top = name.split(".")[0]
        if top in HEAVY:
            assert part in HEAVY[top], f"{top} belongs in {', '.join(HEAVY[top])}, not in {part}"
        if part in STANDARD_LIBRARY_ONLY and top != "lbw_sim":
            assert top in sys.stdlib_module_names | ALLOWED_BESIDES.get(part, set()), f"{part} imports {name}"


# pyarrow imports pandas with the first array that it makes or hands over, unless that goes by its buffers
RECORD_AND_READ = """
import tempfile
from lbw_sim import GuardSpec, Telemetry
from lbw_sim.trace import Recorder, read_trace
spec = GuardSpec.load("default")
guard, state = spec.build(), spec.build().init()
with tempfile.TemporaryDirectory() as folder:
    for steps in (range(5), range(3, 9)):
        with Recorder.open(folder, "run", spec=spec, mode="shadow") as recorder:
            for step in steps:
                seen = Telemetry(step, loss=5.0 - step, lr=1e-3, nonfinite=0.0)
                state, decision = guard.step(state, seen)
                recorder.append(seen, decision, elapsed_s=0.1 * step, effective_lr=1e-3)
    assert read_trace(folder).to_numpy()["skipped"].tolist() == [False] * 9
"""


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("import lbw_sim", {"torch", "pandas", "scipy", "matplotlib", "pyarrow", "numpy", "typer"}),
        ("import lbw_sim.trace", {"torch", "pandas", "scipy", "matplotlib"}),
        (RECORD_AND_READ, {"torch", "pandas", "scipy", "matplotlib", "numba", "llvmlite"}),
        ("import lbw_sim.replay", {"torch", "pandas", "scipy", "matplotlib", "numba", "llvmlite"}),
        ("import lbw_sim.simulate", {"torch", "pandas", "scipy", "matplotlib", "numba", "llvmlite"}),
        ("import lbw_sim.tune", {"torch", "pandas", "scipy", "matplotlib", "numba", "llvmlite", "optuna", "ray"}),
        (
            "import sys; sys.argv = ['lbw', '--help']; import lbw_sim.cli\n"
            "try: lbw_sim.cli.main()\nexcept SystemExit: pass",
            {"torch", "pandas", "scipy", "matplotlib", "pyarrow", "numpy"},
        ),
    ],
    ids=["lbw_sim", "trace", "recording and reading", "replay", "simulate", "tune", "lbw --help"],
)
def test_import_stays_light(command: str, unwanted: set[str]) -> None:
    code = f"{command}\nimport sys; print('LOADED', *sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "LOADED"
