"""Progress bar with images a second and the time left, over all ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def progress(done: Callable[[], int], total: int, shown: bool = True, every: float = 0.5) -> Iterator[None]:
    """Shows how many of `total` images are done, asking every so many seconds; nothing where there is no terminal."""
    if not (shown and console.is_terminal):
        yield
        return
    columns = MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[rate]:.0f} images/s"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, speed_estimate_period=600) as bar:
        task = bar.add_task("", total=total, completed=done(), rate=0.0)
        stop = Event()

        def watch() -> None:
            while not stop.wait(every):
                with suppress(ValueError):  # the disk fails: whoever writes there will say so
                    bar.update(task, completed=done(), rate=bar.tasks[0].speed or 0.0)

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
