"""What a job costs a process of its own: seconds of CPU, and memory."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import resource, sys, time
{imports}
began = time.process_time()
found = {call}
seconds = time.process_time() - began
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"\\n{{seconds}} {{most if sys.platform == 'darwin' else most * 1024}}")
"""


def require_memory_told(job: str) -> None:
    """Raise ValueError where the system does not tell the memory of a process."""
    if sys.platform == "win32":
        raise ValueError(f"{job}: the memory of a process is not told on Windows")


def cost_of(imports: str, call: str) -> tuple[float, float]:
    """Return the seconds of CPU, of all threads, that the expression `call` takes after the
    statements `imports`, and the most bytes of memory of its process.
    """
    program = _PROGRAM.format(imports=imports, call=call)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    seconds, most = done.stdout.split()[-2:]
    return float(seconds), float(most)
