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
if sys.platform == "linux":  # where ru_maxrss counts what the process that started this one held
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        (most,) = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")]
else:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most *= 1 if sys.platform == "darwin" else 1024
print(f"\\n{{seconds}} {{most}}")
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
