"""Jobs that need each other, several at once, where one that fails takes only those after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from ngf import params
from ngf.cores import cores

Needs = Mapping[str, Collection[str]]  # of each job, the jobs before it; in the order of preference


class Done(NamedTuple):
    """outcome: "done", "failed", or "skipped" where a job before it did not succeed."""

    job: str
    outcome: str


def threads_each(at_once: int) -> int:
    """CPU threads of a job, so that all together have as many as there are cores."""
    params.at_least(1, jobs=at_once)
    return max(1, cores() // at_once)


def run(needs: Needs, do: Callable[[str], bool], at_once: int) -> Iterator[Done]:
    """Do each job once all that it needs are done; yields them as they end.

    Of several that could start, the first in `needs` does.

    Args:
        do: runs a job and says whether it succeeded; called in threads, `at_once` at a time. An
            exception of its is one of the caller's and ends everything.
    """
    waiting = {job: set(before) for job, before in needs.items()}
    ended: dict[str, str] = {}
    running: dict[Future[bool], str] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            yield from _skipped(waiting, ended)
            for job in [job for job, before in waiting.items() if before <= ended.keys()]:
                if len(running) == at_once:
                    break
                del waiting[job]
                running[pool.submit(do, job)] = job
            if not running:
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                ended[job] = "done" if future.result() else "failed"
                yield Done(job, ended[job])


def _skipped(waiting: dict[str, set[str]], ended: dict[str, str]) -> Iterator[Done]:
    """Take out what can never start, and what waits for that in turn."""
    while True:
        lost = [
            job
            for job, before in waiting.items()
            if any(ended.get(one) in ("failed", "skipped") for one in before)
        ]
        if not lost:
            return
        for job in lost:
            del waiting[job]
            ended[job] = "skipped"
            yield Done(job, "skipped")
