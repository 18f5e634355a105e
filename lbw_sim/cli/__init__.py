"""`lbw`: one file per command, a few lines each. Heavy imports happen inside the command that needs them.

Errors meant for the user are one line on standard error and exit code 2; results go to standard output.
"""

from __future__ import annotations

import io
import sys

from lbw_sim.errors import BrokenRunsError, LbwError


def main() -> None:
    """Entry point of the `lbw` console script."""
    from lbw_sim.cli.app import command_line

    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal or a pipe that has no dash or bar gets a question mark, not a traceback after the work
        sys.stdout.reconfigure(errors="replace")
    try:
        command_line(prog_name="lbw")
    except BrokenRunsError as error:
        for fault in error.faults:
            print(f"cannot be read: {fault}", file=sys.stderr)
        others = ", or leave them out with --skip-broken" if len(error.faults) < error.runs else ""
        print(
            f"lbw: {len(error.faults)} of {error.runs} runs cannot be read, and nothing was done. Mend them or move "
            f"them away{others}",
            file=sys.stderr,
        )
        sys.exit(2)
    except LbwError as error:
        print(f"lbw: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        # only torch is optional among what commands import
        if error.name != "torch":
            raise
        print("lbw: this command trains models and needs torch: pip install 'lbw-sim[live]'", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # a full disk, a folder that may not be written: not a fault of the program
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"lbw: {what}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        # typer turns both into an exit of its own, and says nothing
        reason = end.__context__
        if isinstance(reason, BrokenPipeError):
            # `lbw … | head`: the reader has seen enough
            sys.exit(0)
        if reason is not None and isinstance(reason.__cause__, KeyboardInterrupt):
            print("lbw: interrupted", file=sys.stderr)
        raise
