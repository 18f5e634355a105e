"""`lbw` as tests call it: in the test's own process, because a new one for each command would cost a second."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import NamedTuple

from forked import Forked

from lbw_sim import cli


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    stdout: str
    stderr: str
    code: int


def lbw(*arguments: object, code: int | None = 0) -> Done:
    """Run a command here and demand its exit code; None: any."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["lbw", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as leaving:
        ended = int(leaving.code or 0)
    finally:
        sys.argv = before
    assert code in (ended, None), out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue(), ended)


def lbw_alone(forked: Forked, *commands: list[object]) -> list[str]:
    """Run commands, one after the other, in a process of their own; what each of them printed."""
    code = """
import json, sys
from commands import lbw
for words in json.loads(sys.argv[1]):
    print(lbw(*words).stdout, end="\\0", flush=True)
"""
    words = json.dumps([list(map(str, command)) for command in commands])
    done = forked.run(code, words, seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\0")[:-1]
