"""What was measured already: a file that a search appends to, and reads when it is started again.

An entry stands under the hash of what was asked and is true whenever it is asked, so one file may serve many searches,
and deleting it costs time only. A line that was torn by a kill, or altered, is left out.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np

from lbw_sim.errors import TuneError
from lbw_sim.ledger import add_line, read_line, read_lines
from lbw_sim.tune.measure import Arrays


class Ledger:
    """Key -> arrays, on disk. `path` None: nothing is kept. Raises TuneError when it cannot be written.

    >>> with Ledger(None) as ledger:
    ...     ledger.add("a", {"x": np.array([1.5])})
    ...     ledger.get("a") is None
    True
    """

    def __init__(self, path: Path | None) -> None:
        self._places: dict[str, int] = {}
        """Key -> where its line begins."""
        self.dropped = 0
        """Lines that were torn or altered."""
        self._file = None
        if path is None:
            return
        try:
            self._file = path.open("a+b")
            self._file.seek(0)
            for begin, said in read_lines(self._file):
                if said is None:
                    self.dropped += 1
                else:
                    self._places[said.partition(b" ")[0].decode("ascii")] = begin
        except OSError as error:
            raise TuneError(f"{path} cannot be kept as a ledger: {error}") from None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def get(self, key: str) -> Arrays | None:
        """What was measured under this key. Raises TuneError when somebody has altered that since."""
        if self._file is None or key not in self._places:
            return None
        said = read_line(self._file, self._places[key])
        if said is None:
            raise TuneError("the ledger was altered while it was in use; start again")
        with np.load(io.BytesIO(base64.b64decode(said.partition(b" ")[2])), allow_pickle=False) as found:
            return dict(found)

    def add(self, key: str, arrays: Arrays) -> None:
        """Keep a measurement."""
        if self._file is None:
            return
        memory = io.BytesIO()
        np.savez_compressed(memory, **arrays)  # type: ignore[arg-type]
        self._places[key] = add_line(self._file, b"%s %s" % (key.encode(), base64.b64encode(memory.getvalue())))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
