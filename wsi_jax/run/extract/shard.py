"""A shard: every n-th slide, for one of n jobs, at any time and in any order.

Feature files are whole or absent, and two jobs write the same one. So a shard needs no
lock, and may be run again, or twice at once.
"""

import os
import re

from wsi_jax.run.run_folder import RunError

FORM = re.compile(r"(\d+|auto)(?:/([1-9]\d*))?", re.ASCII)
SLURM, KUBERNETES = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"


def read_shard(text: str) -> tuple[int, int]:
    """(i, n) of this process, as given or by its place in a job array.

    Task t of an array has shard t modulo n: arrays may begin at 0 or at 1, and with n
    given, some of their tasks may be run again alone.

    Args:
        text: "i/n", "auto" or "auto/n".

    Raises:
        RunError: it is none of these, or the environment does not say which shard.
    """
    flag, match = f"--config.shard={text}", FORM.fullmatch(text)
    index, count = match.groups("0") if match else ("0", "0")
    count = int(count)
    if index != "auto":
        if int(index) < count:
            return int(index), count
        raise RunError(
            f"{flag}: write i/n, where i counts from 0 to n-1, as 0/8; in a job array "
            "auto, or auto/n"
        )
    task = os.environ.get(SLURM) or os.environ.get(KUBERNETES)
    if not task:
        raise RunError(
            f"{flag}: neither {SLURM} nor {KUBERNETES} is set, as in a task of a job "
            "array; write i/n, as 0/8"
        )
    if not count:
        names = (f"SLURM_ARRAY_TASK_{name}" for name in ("COUNT", "MIN", "MAX"))
        count, low, high = (int(os.environ.get(name) or 0) for name in names)
        if not os.environ.get(SLURM) or count != high - low + 1:
            raise RunError(
                f"{flag}: the number of shards is known of Slurm's arrays without gaps "
                "only; write auto/n, with that number"
            )
    return int(task) % count, count
