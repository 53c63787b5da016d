"""Records that are on the disk when they were written, or an error that names the file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from detres.engine.record_files import RecordFile


def test_records_are_there_at_once_behind_what_was(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(b"first\n")
    file = RecordFile(path)
    file.write(b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"
    file.flush()
    file.close()
    file.close()
    with pytest.raises(FileExistsError):
        RecordFile(path, new=True)


FULL = """
import resource, signal, sys
from pathlib import Path
from detres.engine.event_files import EventFile
from detres.engine.record_files import RecordFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
file = RecordFile(folder / "records") if sys.argv[2] == "records" else EventFile(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for step in range(1000):
        if sys.argv[2] == "records":
            file.write(b"x" * 37)
        else:
            file.add_scalar("loss", 1.0, step)
except OSError as error:
    file.close()
    sys.exit(f"{Path(error.filename).name[:6]}: {error.strerror} in record {step}")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits")
@pytest.mark.parametrize("kind", ["records", "events"])
def test_where_the_file_system_takes_no_more_one_error_names_the_file(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), kind], capture_output=True, text=True
    )
    assert done.stderr.startswith(f"{kind[:6]}: File too large in record ")
    assert done.stderr.count("\n") == 1  # no thread had a traceback of its own
