"""The process that writes one stage run to MLflow: `python -m ngf.lineage.recorder`.

It reads a JSON line when the stage starts and one when it ends, and answers each with a JSON line:
{"run_id": ...}, {} or {"error": ...}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngf import report
from ngf.lineage import now_ms
from ngf.lineage._client import again, one_line, prepare_environment, unless_there, uploading
from ngf.lineage._patience import Patience
from ngf.lineage._who import git_revision, user
from ngf.lineage.chain import WROTE

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAM_LIMIT = 6000  # characters that MLflow keeps of one parameter
OPENING = "ngf.opening"  # the tag by which a run is found whose creation was not answered


class Run:
    """One MLflow run, from the stage's opening line to its closing line."""

    def __init__(self, client: MlflowClient, opening: dict[str, Any], patience: Patience) -> None:
        self.client = client
        self._opening = uuid.uuid4().hex
        given = os.environ.get("MLFLOW_RUN_ID")
        self.ours = given is None
        self.stage = opening["stage"]
        self.run_id = given or patience.keep(lambda: self._create(opening, patience.tested))
        try:
            patience.keep(lambda: self._log_settings(opening["settings"]))
            patience.keep(lambda: self._log_inputs("read", opening["reads"]))
        except Exception:
            self.end("FAILED", now_ms())
            raise

    def close(self, closing: dict[str, Any]) -> None:
        for key, value in closing.get("metrics", {}).items():
            self.client.log_metric(self.run_id, key, value, timestamp=closing["time_ms"])
        wrote = closing.get("wrote", {})
        self._log_inputs("wrote", wrote)
        tags = {**closing.get("tags", {}), **{WROTE + w["digest"]: k for k, w in wrote.items()}}
        if "message" in closing:
            tags["mlflow.note.content"] = closing["message"]
        if self.ours and closing.get(
            "tags"
        ):  # "train signs badnets victim" tells more than "train"
            tags["mlflow.runName"] = " ".join([self.stage, *closing["tags"].values()])
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)
        with uploading():
            for key, artifact in wrote.items():
                if artifact["attach"]:
                    self._attach(key, Path(artifact["path"]))
        self.end(closing["status"], closing["time_ms"])

    def end(self, status: str, time_ms: int) -> None:
        if self.ours:
            self.client.set_terminated(self.run_id, status, end_time=time_ms)

    def _create(self, opening: dict[str, Any], retried: bool) -> str:
        """retried: an earlier try may have made the run."""
        experiment_id = self._experiment()
        ours = f"tags.`{OPENING}` = '{self._opening}'"
        if retried and (made := self._latest(experiment_id, ours)):
            return made
        tags = {
            OPENING: self._opening,
            "ngf.stage": opening["stage"],
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": f"ngf {opening['stage']}",
            "mlflow.user": user(),
        }
        if revision := git_revision():
            tags["mlflow.source.git.commit"] = revision
        if parent := self._writer(experiment_id, opening["reads"]):
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(
            experiment_id, opening["time_ms"], tags, run_name=opening["stage"]
        )
        return str(run.info.run_id)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ngf")
        if not (found := self.client.get_experiment_by_name(name)):
            unless_there(lambda: self.client.create_experiment(name))
            found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _writer(self, experiment_id: str, reads: dict[str, Any]) -> str | None:
        """The latest run that wrote the parent artifact; its bytes may be older than its path."""
        for artifact in reversed(list(reads.values())):
            if artifact["parent"]:
                found = self._latest(experiment_id, f"tags.`{WROTE}{artifact['digest']}` != ''")
                if found:
                    return found
        return None

    def _latest(self, experiment_id: str, query: str) -> str | None:
        found = self.client.search_runs(
            [experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return str(found[0].info.run_id) if found else None

    def _log_settings(self, settings: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [
            Param(f"{section}.{key}", str(value)[:PARAM_LIMIT])
            for section, values in settings.items()
            for key, value in values.items()
        ]
        self.client.log_batch(self.run_id, params=flat)

    def _log_inputs(self, context: str, artifacts: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(key, artifact["digest"], "local", json.dumps({"uri": artifact["path"]})),
                [InputTag("mlflow.data.context", context)],
            )
            for key, artifact in artifacts.items()
        ]
        # The server looks for a data set and then inserts it: of runs that log the same one at the
        # same moment, all but one are refused, and find it the next time.
        again(lambda: self.client.log_inputs(self.run_id, inputs))

    def _attach(self, key: str, path: Path) -> None:
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), key)
            for name, content in report.pages(path).items():
                self.client.log_text(self.run_id, content, f"{key}/{name}")
        else:
            self.client.log_artifact(self.run_id, str(path))


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=_OUT, flush=True)


def main() -> None:
    prepare_environment()
    try:
        from mlflow import MlflowClient

        opening = json.loads(sys.stdin.readline() or "null")
        if opening is None:
            return
        run = Run(MlflowClient(), opening, Patience())
        with contextlib.suppress(BrokenPipeError):
            _answer({"run_id": run.run_id})
        line = sys.stdin.readline()
        if not line:  # the stage's process is gone
            Patience().keep(lambda: run.end("KILLED", now_ms()))
            return
        closing = json.loads(line)
        Patience().keep(lambda: run.close(closing))
        _answer({})
    except Exception as error:  # whatever MLflow raises, the stage must hear of it
        _answer({"error": one_line(error)})


if __name__ == "__main__":
    # MLflow and its database print; the answers need a channel of their own.
    _OUT, sys.stdout = sys.stdout, sys.stderr
    main()
