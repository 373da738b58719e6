"""Jobs that need each other: order, how many at once, and what a failure takes along."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngf import jobs
from ngf.errors import InputError


@st.composite
def graphs(draw):
    """{job: earlier jobs}, and which of them fail."""
    size = draw(st.integers(1, 8))
    names = [f"job{i}" for i in range(size)]
    needs = {n: draw(st.sets(st.sampled_from(names[:i]))) if i else set()
             for i, n in enumerate(names)}  # fmt: skip
    return needs, draw(st.sets(st.sampled_from(names)))


@given(graphs(), st.integers(1, 4))
def test_each_job_runs_once_after_what_it_needs_and_never_after_a_failure(graph, at_once):
    needs, failing = graph
    lock, ran, running, most = threading.Lock(), [], [0], [0]

    def do(job):
        with lock:
            assert all(before in ran for before in needs[job])
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1
            if job not in failing:
                ran.append(job)
        return job not in failing

    found = dict(jobs.run(needs, do, at_once))
    assert found.keys() == needs.keys()
    assert most[0] <= at_once
    for job, outcome in found.items():
        lost = [before for before in needs[job] if found[before] != "done"]
        expected = "skipped" if lost else "failed" if job in failing else "done"
        assert outcome == expected


def test_several_run_at_once():
    together = threading.Barrier(3, timeout=20)
    found = dict(jobs.run({name: set() for name in "abc"}, lambda _: together.wait() >= 0, 3))
    assert set(found.values()) == {"done"}


def test_the_first_that_can_start_is_preferred():
    order = []
    needs = {"late": {"root"}, "root": set(), "other": set()}
    list(jobs.run(needs, lambda job: order.append(job) is None, 1))
    assert order == ["root", "late", "other"]


def test_threads_are_divided_and_one_is_left():
    assert jobs.threads_each(1) >= jobs.threads_each(2) >= 1
    assert jobs.threads_each(10**6) == 1
    with pytest.raises(InputError, match="jobs"):
        jobs.threads_each(0)
