"""The DAG of ONE dataset-attack pair. The same graph as dvc.yaml: tests/test_graphs.py proves it.

    prepare ─┬─> reference ────────────────────────────────┐
             ├─> poison ─> victim ─┬─> purify (a defense) ─┼─> evaluate ─┬─> promote
             └─> clean ────────────┘                       └─> inspect ──┘

and at the end, whatever happened, `report_status`.

Sections of params.yaml become run parameters, so that Kubeflow's UI shows every number.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from components.evaluate import evaluate
from components.inspect import inspect
from components.poison import poison
from components.prepare import prepare
from components.promote import promote
from components.purify import purify
from components.report_status import report_status
from components.train import train_reference, train_victim
from ngf import params, stages
from pipelines.cluster import Cluster, hold_to_share, place, place_raw


def build(
    dataset: str,
    attack: str,
    numbers: Mapping[str, Any],
    image: str,
    revision: str | None = None,
    *,
    shared: bool = True,
) -> Any:
    """The pipeline of one pair, with the numbers of params.yaml as defaults.

    Args:
        image: of every task. revision: git's, of `cluster.raw.repository` where there is one.
        shared: nodes are shared, so a task keeps to the cores that it asks for.

    Raises:
        InputError: no such data set or attack, or a section that its stage does not take.
    """
    params.one_of(numbers["datasets"], dataset=dataset)
    params.one_of(numbers["attacks"], attack=attack)
    grid, cluster = numbers["grid"], Cluster.of(numbers["cluster"])
    tracked = {"repository": cluster.raw.repository, "revision": revision}
    numbers = without_nulls(numbers)
    active = {"dataset": [dataset], "attack": [attack], "defense": grid["defenses"]}
    stages.check(numbers, active, Path("params.yaml"))

    @dsl.pipeline(
        # Kubeflow looks for what it has done among pipelines of one name alone: by the data set's,
        # its pairs share the splits and the reference.
        name=f"ngf-{dataset}".replace("_", "-"),
        display_name=f"Purify {dataset} from {attack}",
        description=f"Train a {attack} victim on {dataset}, purify it, measure and promote it.",
    )
    def purification(
        protocol: dict = numbers["prepare"],
        source: dict = numbers["datasets"][dataset],
        raw: dict = tracked if cluster.raw.repository else {},
        recipe: dict = numbers["train"][dataset],
        attack_options: dict = numbers["attacks"][attack],
        safeguards: dict = numbers["purify"],
        thresholds: dict = numbers["evaluate"],
        plan: dict = numbers["inspect"],
        gate: dict = numbers["promote"],
    ):
        def placed(task: dsl.PipelineTask, name: str, *, heavy: bool = False) -> Any:
            if shared:
                hold_to_share(task, cluster, heavy=heavy)
            return place(task.set_display_name(name), cluster, image, heavy=heavy).outputs

        end = report_status(pair=f"{dataset} {attack}")
        end.set_caching_options(False)
        placed(end, "how it ended")
        with dsl.ExitHandler(end, name="purification"):
            first = prepare(dataset=dataset, protocol=protocol, source=source, raw=raw)
            place_raw(first, cluster.raw)
            data = placed(first, "prepare")
            reference = placed(
                train_reference(dataset=dataset, train=data["train"], recipe=recipe),
                "reference",
                heavy=True,
            )
            poisoned = placed(
                poison(train=data["train"], attack=attack, options=attack_options),
                "poison",
                heavy=True,  # some attacks train a surrogate
            )
            victim = placed(
                train_victim(
                    dataset=dataset, train=data["train"], poison=poisoned["out"], recipe=recipe
                ),
                "victim",
                heavy=True,
            )
            for defense in grid["defenses"]:
                purified = placed(
                    purify(
                        model=victim["out"],
                        clean=data["clean"],
                        defense=defense,
                        options=numbers["defenses"][defense],
                        protocol=safeguards,
                    ),
                    f"purify {defense}",
                    heavy=True,
                )
                measured = placed(
                    evaluate(
                        model=purified["out"],
                        victim=victim["out"],
                        reference=reference["out"],
                        trigger=victim["trigger"],
                        test=data["test"],
                        thresholds=thresholds,
                    ),
                    f"evaluate {defense}",
                    heavy=True,  # three networks on the whole test split, twice
                )
                if defense in grid["promote"]:
                    looked = placed(
                        inspect(
                            model=purified["out"],
                            victim=victim["out"],
                            reference=reference["out"],
                            trigger=victim["trigger"],
                            train=data["train"],
                            test=data["test"],
                            plan=plan,
                        ),
                        f"inspect {defense}",
                        heavy=True,
                    )
                    task = promote(
                        model=purified["out"],
                        evaluation=measured["out"],
                        inspection=looked["out"],
                        gate=gate,
                    )
                    task.set_caching_options(False)  # the registry may have changed since
                    placed(task, f"promote {defense}")

    return purification


def without_nulls(section: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter of Kubeflow holds no null: what is null is left out, which says the same."""
    return {
        key: without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value is not None
    }
