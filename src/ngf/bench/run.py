"""All cells of a benchmark: which there are, what each waits for, and a process for each."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

from ngf import jobs, params, plugins
from ngf.bench import cell, victims
from ngf.bench.victims import Place
from ngf.errors import InputError

Work = Callable[[], None]

# Starting a process also asks after all that were started before. Two threads that ask after one
# child at a time read its exit status once, and the other takes it for a failure.
ONE_AT_A_TIME = threading.Lock()


class Bench:
    """Attacks x defenses x seeds on a data set.

    Raises:
        InputError: a name that does not exist; nothing was made.
    """

    def __init__(
        self, places: Sequence[Place], attacks: Sequence[str], defenses: Sequence[str]
    ) -> None:
        if not (places and attacks and defenses):
            raise InputError("a benchmark needs a seed, an attack and a defense at the least")
        numbers = places[0].numbers
        for attack in attacks:
            victims.attack_options(attack, numbers)
        for defense in defenses:
            params.one_of(plugins.names("defenses"), defense=defense)
            plugin = plugins.load("defenses", defense)
            options = cell.settings(places[0], defense)
            params.options(plugin.purify, options, f"defenses.{defense}")
        self.places, self.attacks, self.defenses = places, attacks, defenses

    def cells(self) -> Iterator[tuple[Place, str, str]]:
        for at in self.places:
            for attack in self.attacks:
                for defense in self.defenses:
                    yield at, attack, defense

    def plan(self, threads: int) -> tuple[dict[str, set[str]], dict[str, Work]]:
        """(what each job needs, what each does); cells that are done are not among them."""
        needs: dict[str, set[str]] = {}
        work: dict[str, Work] = {}

        def add(name: str, do: Work, *before: str) -> str:
            needs[name], work[name] = set(before), do
            return name

        reference: list[str] = []
        for at in self.places:
            data = add(f"{at.seed} data", partial(victims.prepare, at))
            if not reference:
                reference = [add("reference", partial(victims.reference, at), data)]
            for attack in self.attacks:
                before = [data]
                if attack.endswith("-recalibrated"):
                    plain = attack.partition("-")[0]
                    name = f"{at.seed} {plain}"
                    if name not in needs:
                        add(name, partial(victims.victim, at, plain), data)
                    before.append(name)
                victim = f"{at.seed} {attack}"
                if victim not in needs:
                    add(victim, partial(victims.victim, at, attack), *before)
                measured = add(
                    f"{victim} before", partial(cell.before, at, attack), victim, *reference
                )
                for defense in self.defenses:
                    add(
                        f"{victim} {defense}",
                        partial(_cell, at, attack, defense, threads),
                        measured,
                    )
        return needs, work

    def found(self) -> list[dict[str, Any]]:
        """What the cells' files hold, failures among them."""
        from ngf import store

        files = [cell.file(*one) for one in self.cells()]
        return [store.read_json(file) for file in files if file.exists()]


def run(bench: Bench, at_once: int, say: Callable[[str], None]) -> bool:
    """Everything that is not done yet; whether all of it is done now.

    Each job is a process of its own: what it holds ends with it, the memory that it takes is its
    own, and one that is killed takes nothing along.
    """
    threads = jobs.threads_each(at_once)
    needs, work = bench.plan(threads)
    context = _context(threads)
    whole = True
    ended = jobs.run(needs, lambda job: _in_process(context, work[job]), at_once)
    for number, (job, outcome) in enumerate(ended, 1):
        whole = whole and outcome == "done"
        say(f"[{number}/{len(needs)}] {job}: {outcome}")
    return whole


def _context(threads: int) -> Any:
    """Processes forked from one that has imported torch and computed nothing."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ngf.bench.cell", "ngf.defenses", "ngf.metrics"])
    return context


def _in_process(context: Any, work: Work) -> bool:
    process = context.Process(target=_quietly, args=(work,))
    with ONE_AT_A_TIME:
        process.start()
    connection.wait([process.sentinel])
    with ONE_AT_A_TIME:
        process.join()
    return bool(process.exitcode == 0)


def _quietly(work: Work) -> None:
    try:
        work()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _cell(at: Place, attack: str, defense: str, threads: int) -> None:
    if not cell.is_done(at, attack, defense):
        cell.run(at, attack, defense, threads)


def places(
    numbers: dict[str, Any],
    dataset: str,
    *,
    seeds: Sequence[int],
    norm: str,
    root: Path,
    raw: Path | None,
) -> list[Place]:
    return [
        victims.place(numbers, dataset, seed=seed, norm=norm, root=root, raw=raw) for seed in seeds
    ]
