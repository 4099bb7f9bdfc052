"""MLflow as a tracker; see sink.py for what each method does."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fbp.experiment.rundir import tags
from fbp.experiment.rundir.redact import redact
from fbp.experiment.rundir.series import Series
from fbp.experiment.tracking import mlflow_format, mlflow_shown, store
from fbp.experiment.tracking.sink import NotUnderstood, Point, Refused, RunInfo


@functools.cache  # one client for all runs of a process
def _connect(uri: str, root: Path) -> store.CheckedClient:
    return store.connect(uri, root, refusals=True)


_BATCH = 1000  # metrics per request: MLflow's limit


class MlflowSink:
    """A run in the MLflow store at `uri`.

    Safe between processes, if no two send the same run. Not safe between threads.
    """

    max_points = mlflow_format.POINTS

    def __init__(self, uri: str, root: Path) -> None:
        self.uri, self.root = uri, root
        self._client = _connect(uri, root)
        self._run_id = ""
        self._parent_id = ""
        self._is_sent_again = False
        self._present: set[tuple[str, int]] = set()

    def open(self, run: RunInfo) -> str:
        is_known = bool(run.run_id) and self._is_of_folder(run)
        self._run_id = run.run_id if is_known else self._found_or_created(run)
        location = self._client.get_run(self._run_id).info.artifact_uri
        store.check_artifact_uri(self.uri, location)
        self._parent_id, self._is_sent_again = run.parent_id, run.is_sent_again
        if is_known:
            self._client.update_run(self._run_id, status="RUNNING")
            self._delete_tags(tags.OF_AN_END)
        if run.is_sent_again:
            self._present = self._points_in_store()
        return self._run_id

    def log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [
            Param(mlflow_format.key_of(key), value[: mlflow_format.LONGEST_PARAM])
            for key, value in params.items()
        ]
        self._client.log_batch(self._run_id, params=entries)

    def log_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        datasets = [mlflow_format.dataset_input(entry) for entry in inputs]
        self._client.log_inputs(self._run_id, datasets)

    def log_metrics(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for point in points:
            key = mlflow_format.key_of(point.key)
            if (key, point.step) not in self._present:
                # MLflow would turn infinity into 1.8e308
                value = point.value if abs(point.value) != float("inf") else float("nan")
                metrics.append(Metric(key, value, point.time, point.step))
        for i in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + _BATCH])

    def set_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags.HEARTBEAT in values:
            self._show_as_running()
        entries = [
            RunTag(mlflow_format.key_of(key), value[: mlflow_format.LONGEST_TAG])
            for key, value in values.items()
        ]
        self._client.log_batch(self._run_id, tags=entries)

    def _show_as_running(self) -> None:
        """Correct a run that was closed as dead though it lives."""
        if self._client.get_run(self._run_id).info.status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
            self._delete_tags([tags.MESSAGE])

    def log_artifacts(self, folder: Path) -> None:
        self._client.log_artifacts(self._run_id, str(folder))

    def log_model(self, folder: Path, code: Path) -> None:
        experiment = self._client.get_run(self._run_id).info.experiment_id
        of_this_run = f"source_run_id = '{self._run_id}'"
        if not self._client.search_logged_models([experiment], of_this_run, max_results=1):
            log = mlflow_format.log_model
            self._client.call("log_model", log, folder, code, self._run_id, self.uri)

    def facts(self, series: Mapping[str, Series]) -> dict[str, Any]:
        """Return what MLflow shows of the run, as far as the journal does not say it.

        Args:
            series: the points that were sent.
        """
        if self._is_sent_again:
            present = mlflow_shown.points_in_store(self._client, self._run_id)
            series = mlflow_shown.with_times_of(mlflow_shown.as_shown(series), present)
        return {
            "run_id": self._run_id,
            "parent_id": self._parent_id,
            "metrics": mlflow_shown.metric_digests(mlflow_shown.as_shown(series)),
            "models": mlflow_shown.models(self._client, self._run_id),
        }

    def _delete_tags(self, names: Sequence[str]) -> None:
        present = self._client.get_run(self._run_id).data.tags
        for name in names:
            if name in present:
                self._client.delete_tag(self._run_id, name)

    def finish(self, status: str, time: int) -> None:
        # somebody may have closed it as dead meanwhile
        wrong = [tags.MESSAGE] if status == "FINISHED" else []
        self._delete_tags([tags.HEARTBEAT, *wrong])
        self._client.set_terminated(self._run_id, status, time)
        info = self._client.get_run(self._run_id).info
        if info.status != status:
            raise NotUnderstood(
                f"{redact(self.uri)}: expected run {self._run_id} to be {status} after it was "
                f"closed so, got {info.status}; check that MLflow is at this address"
            )

    def _found_or_created(self, run: RunInfo) -> str:
        """Return the id of the run, which an interrupted attempt may have created already."""
        experiment = self._experiment(run.experiment)
        of_this_folder = f"tags.`{tags.FOLDER}` = '{run.folder}'"
        runs = self._client.search_runs([experiment], of_this_folder, max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        parent = {tags.PARENT_ID: run.parent_id} if run.parent_id else {}
        created = self._client.create_run(
            experiment,
            start_time=run.start_time,
            tags={**run.tags, **parent},
            run_name=run.name,
        )
        return str(created.info.run_id)

    def _is_of_folder(self, run: RunInfo) -> bool:
        """Return whether the run of the id that the folder has is that folder's, not another's.

        Raises:
            Refused: if it is in MLflow's trash.
        """
        run_id, recorded = run.run_id, self._client.get_run(run.run_id)
        if recorded.data.tags.get(tags.FOLDER, run.folder) != run.folder:
            return False
        if recorded.info.lifecycle_stage == "deleted":
            raise Refused(
                f"{redact(self.uri)}: the run {run_id} is in MLflow's trash; restore it with: "
                f"mlflow runs restore --run-id {run_id}; or remove sent.json from the run's "
                "folder, and it is sent as a new one"
            )
        return True

    def _experiment(self, name: str) -> str:
        with store.creation_lock(self.uri, self.root):
            experiment = self._client.get_experiment_by_name(name)
            if experiment and experiment.lifecycle_stage == "deleted":
                raise Refused(
                    f"{redact(self.uri)}: experiment {name!r}: "
                    f"{store.deleted_experiment(experiment.experiment_id)}"
                )
            if experiment:
                return str(experiment.experiment_id)
            folder = mlflow_format.folder_of(name)
            location = f"{store.artifact_root(self.root)}/{folder}"
            return str(
                self._client.create_experiment(
                    name,
                    artifact_location=location if store.is_embedded(self.uri) else None,
                    # the dashboard then opens on its side for training runs
                    tags={tags.EXPERIMENT_KIND: "custom_model_development"},
                )
            )

    def _points_in_store(self) -> set[tuple[str, int]]:
        return {
            (key, point.step)
            for key in self._client.get_run(self._run_id).data.metrics
            for point in self._client.get_metric_history(self._run_id, key)
        }
