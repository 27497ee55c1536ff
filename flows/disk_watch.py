"""disk-watch: how full each disk is, when it runs out, and whether it tells of errors."""

from prefect import State, flow

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Options
from steelyard import disk_watch as watching
from steelyard.report import Report
from tasks.runner import run_as_task


class DiskWatch(Options):
    """Nothing to choose: every file system that holds anything of ours is looked at."""

    @property
    def title(self) -> str:
        return "every disk of ours"


@flow(**named("disk-watch", "disk watch"))
def disk_watch(options: DiskWatch = DiskWatch()) -> State[Report] | Report:
    """Look at every disk: room, inodes, trend, what is whose, I/O errors. Reads no weights and changes nothing."""
    return perform("disk-watch", options, lambda site: watching.disk_watch(site, run=run_as_task))


if __name__ == "__main__":
    by_hand("disk-watch")
