"""Submission by the real kfp.Client, and by kfp's own command, to a loopback server."""

import copy
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from conftest import ROOT
from test_cluster import GPU
from typer.testing import CliRunner

from ngf import params
from ngf.cli import app
from ngf.errors import InputError
from pipelines.cluster import Cluster
from pipelines.login import KubeflowError, Login
from pipelines.patience import Patience
from pipelines.submit import DONE, Board, failures, packages, pod_log, submit

API = "/apis/v2beta1"
CUT = object()
PAGE = "<html>Log in</html>"
MOMENT = "2026-01-01T00:00:00Z"


class Server(ThreadingHTTPServer):
    """Keeps experiments and runs as Kubeflow's API server does; a look at the list moves runs on.

    endings: {run's name: the states it takes, one a look}. A run without one stays PENDING.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.experiments, self.runs, self.recurring = [], [], []
        self.endings, self.most, self.page = {}, 0, 100
        self.health, self.headers = {"multi_user": False}, {}
        self.lose_starts = 0  # answers to starts that do not arrive
        self.instead = []  # of the next answers about runs: a status, CUT or a page

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name, state="PENDING", **more):
        run = {"run_id": f"run-{len(self.runs)}", "display_name": name, "state": state,
               "experiment_id": "e-0", "created_at": MOMENT, **more}  # fmt: skip
        self.runs.append(run)
        return run

    def move_on(self):
        for run in self.runs:
            states = self.endings.get(run["display_name"])
            if states and run["state"] in ("PENDING", "RUNNING"):
                run["state"] = states.pop(0) if len(states) > 1 else states[0]
        active = [run for run in self.runs if run["state"] in ("PENDING", "RUNNING")]
        self.most = max(self.most, len(active))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, parts = self.server, urlsplit(self.path)
        asked = parse_qs(parts.query)
        path = parts.path.removeprefix(API)
        server.headers[path] = dict(self.headers)
        if path == "/healthz":
            return self.answer(server.health)
        if path == "/experiments":
            return self.answer({"experiments": server.experiments})
        if path == "/runs":
            if server.instead:
                return self.something_else(server.instead.pop(0))
            server.move_on()
            return self.answer(self.page("runs", server.runs[::-1], asked))
        if path == "/recurringruns":
            return self.answer(self.page("recurringRuns", server.recurring, asked))
        if found := re.fullmatch("/runs/(.*)", path):
            return self.answer(next(r for r in server.runs if r["run_id"] == found[1]))
        if path == "/api/v1/namespaces/ml/pods/pod-7/log":
            return self.answer("\n".join(f"line {n}" for n in range(30)))
        return self.answer({"message": f"{path} not found"}, 404)

    def do_POST(self):
        server, path = self.server, self.path.partition("?")[0].removeprefix(API)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if path == "/experiments":
            server.experiments.append({**body, "experiment_id": "e-0"})
            return self.answer(server.experiments[-1])
        if path == "/runs":
            name = body.pop("display_name")
            run = server.add(name, **{k: v for k, v in body.items() if v})
            if server.lose_starts:
                server.lose_starts -= 1
                return self.something_else(CUT)
            return self.answer(run)
        if path == "/recurringruns":
            server.recurring.append({**body, "recurring_run_id": f"r-{len(server.recurring)}"})
            return self.answer(server.recurring[-1])
        if found := re.fullmatch("/runs/(.*):terminate", path):
            next(r for r in server.runs if r["run_id"] == found[1])["state"] = "CANCELING"
            return self.answer({})
        return self.answer({"message": f"{path} not found"}, 404)

    def do_DELETE(self):
        found = re.fullmatch(f"{API}/recurringruns/(.*)", self.path)
        kept = [one for one in self.server.recurring if one["recurring_run_id"] != found[1]]
        self.server.recurring[:] = kept
        return self.answer({})

    def page(self, name, rows, asked):
        start, size = int(asked.get("page_token", ["0"])[0] or 0), self.server.page
        token = {"next_page_token": str(start + size)} if start + size < len(rows) else {}
        return {name: rows[start : start + size], **token}

    def something_else(self, what):
        if what is CUT:
            return self.connection.shutdown(2)
        if isinstance(what, int):
            return self.answer({"message": "later"}, what)
        return self.answer(what, kind="text/html")

    def answer(self, body, code=200, kind="application/json"):
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Three compiled pairs on the cluster of test_cluster."""
    numbers = {**params.read(ROOT / "params.yaml"), "cluster": copy.deepcopy(GPU)}
    return packages(numbers, None, None, tmp_path_factory.mktemp("packages"))


def board(server):
    return Board(server.address, Cluster.of(copy.deepcopy(GPU)))


def names(server):
    return [run["display_name"] for run in server.runs]


def test_a_run_carries_its_pipeline_its_account_and_its_experiment(server, grid):
    submit(board(server), grid[:1])
    (run,) = server.runs
    assert run["display_name"] == grid[0].name
    assert run["service_account"] == "runner"
    assert run["experiment_id"] == "e-0"
    assert server.experiments[0]["display_name"] == "ngf"
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "ngf-signs"
    assert "platforms" in run["pipeline_spec"]["platform_spec"]


def test_the_grid_is_all_pairs_and_one_pair_is_one(grid, numbers, tmp_path):
    assert [(p.dataset, p.attack) for p in grid] == [
        (dataset, attack)
        for dataset in numbers["grid"]["datasets"]
        for attack in numbers["grid"]["attacks"]
    ]
    (one,) = packages(numbers, "cifar10", "wanet", tmp_path)
    assert one.path.name == "ngf-cifar10-wanet.yaml"


def test_the_name_follows_the_numbers(numbers, tmp_path):
    def name(content):
        return packages(content, "signs", "badnets", tmp_path)[0].name

    changed = copy.deepcopy(numbers)
    changed["defenses"]["ngf"]["steps"] += 1
    assert name(numbers) == name(copy.deepcopy(numbers)) != name(changed)


def test_what_has_succeeded_or_is_under_way_is_not_started_again(server, grid):
    server.add(grid[0].name, "SUCCEEDED")
    server.add(grid[1].name, "RUNNING")
    server.add(grid[2].name, "FAILED")
    states = submit(board(server), grid)
    assert names(server)[3:] == [grid[2].name]
    assert [states[package.name] for package in grid] == ["SUCCEEDED", "RUNNING", "PENDING"]


def test_a_run_counts_on_whichever_page_it_is(server, grid):
    server.page = 2
    server.add(grid[0].name, "SUCCEEDED")
    for number in range(5):
        server.add(f"another {number}", "SUCCEEDED")
    submit(board(server), grid[:1])
    assert names(server).count(grid[0].name) == 1


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_than_so_many_are_under_way(server, grid, at_once):
    server.endings = {package.name: ["RUNNING", "RUNNING", "SUCCEEDED"] for package in grid}
    seen = []
    states = submit(board(server), grid, at_once=at_once, wait=True, pause=0, show=seen.append)
    assert set(states.values()) == {"SUCCEEDED"}
    assert server.most == at_once
    assert sorted(names(server)) == sorted(package.name for package in grid)
    assert {"", "PENDING", "RUNNING", "SUCCEEDED"} == {s for look in seen for s in look.values()}


def task(state, name="reference"):
    return {"run_details": {"task_details": [{"display_name": name, "state": state}]}}


@pytest.fixture
def looks(server):
    """How many runs there were after each look; what a look does: {look: [(run's name, task)]}."""
    happens, seen = {}, []

    def look(states):
        for name, details in happens.get(len(seen), ()):
            next(run for run in server.runs if run["display_name"] == name).update(details)
        seen.append(len(server.runs))

    return happens, seen, look


@pytest.mark.parametrize("name", ["reference", "train-reference"])
def test_pairs_of_a_data_set_wait_for_the_first_ones_reference(server, grid, looks, name):
    happens, seen, look = looks
    happens |= {1: [(grid[0].name, task("RUNNING", name))], 3: [(grid[0].name, task(DONE, name))]}
    states = submit(board(server), grid, pause=0, show=look)
    assert seen == [1, 1, 1, 1, 3]
    assert set(states.values()) == {"PENDING"}


def test_another_task_that_has_succeeded_is_no_reference(server, grid, looks):
    happens, seen, look = looks
    happens |= {0: [(grid[0].name, task(DONE, "prepare"))], 2: [(grid[0].name, task(DONE))]}
    submit(board(server), grid, pause=0, show=look)
    assert seen == [1, 1, 1, 3]


def test_where_the_first_ends_without_a_reference_the_next_is_first(server, grid, looks):
    happens, seen, look = looks
    happens |= {0: [(grid[0].name, {"state": "FAILED"})], 2: [(grid[1].name, task(DONE))]}
    submit(board(server), grid, pause=0, show=look)
    assert seen == [1, 2, 2, 3]
    assert names(server) == [package.name for package in grid]


def test_a_run_that_failed_after_its_reference_holds_nobody_back(server, grid):
    server.add(grid[0].name, "FAILED", **task(DONE))
    submit(board(server), grid, pause=0)
    assert len(server.runs) == 1 + len(grid)


def test_data_sets_do_not_wait_for_each_other(server, grid, tmp_path, looks):
    numbers = {**params.read(ROOT / "params.yaml"), "cluster": copy.deepcopy(GPU)}
    other = packages(numbers, "cifar10", "badnets", tmp_path)
    happens, seen, look = looks
    happens |= {0: [(grid[0].name, task(DONE))]}
    submit(board(server), [*grid, *other], pause=0, show=look)
    assert seen == [2, 4]


@pytest.fixture
def kubernetes_at(tmp_path, monkeypatch):
    """Makes the address the one of the current context."""
    from kubernetes.config import kube_config

    def point(address):
        place = tmp_path / "kubeconfig"
        content = {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "u", "user": {}}],
        }
        place.write_text(yaml.safe_dump(content))
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(place))

    return point


def test_a_run_that_fails_is_not_started_twice_and_says_why(server, grid, kubernetes_at):
    kubernetes_at(server.address)
    server.endings = {grid[0].name: ["FAILED"]}
    here = board(server)
    states = submit(here, grid[:1], wait=True, pause=0)
    assert states == {grid[0].name: "FAILED"}
    assert len(server.runs) == 1
    task = {"display_name": "purify ngf", "state": "FAILED"}
    task |= {"error": {"message": "exit code 137"}, "child_tasks": [{"pod_name": "pod-7"}]}
    server.runs[0]["run_details"] = {"task_details": [task, {**task, "state": "SUCCEEDED"}]}
    lines = failures(here, states, pod_log(None, "ml"))
    assert lines[0] == f"{grid[0].name}: task 'purify ngf' failed: exit code 137"
    assert lines[1:] == [f"    line {number}" for number in range(10, 30)]
    task["child_tasks"] = [{"pod_name": "gone"}]
    assert "(no log of pod gone: Not Found)" in failures(here, states, pod_log(None, "ml"))[1]
    server.runs[0]["run_details"] = None
    server.runs[0]["error"] = {"message": "no such image"}
    assert failures(here, states, pod_log(None, "ml")) == [f"{grid[0].name}: no such image"]


def test_recurring_runs_compute_everything_each_time(server, grid):
    said = board(server).repeat(grid[0], "0 0 3 * * *")
    assert said == "signs benign: every 0 0 3 * * *, in experiment ngf"
    (body,) = server.recurring
    assert body["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert body["display_name"] == "signs benign"
    assert body["service_account"] == "runner"
    assert "platforms" in body["pipeline_spec"]["platform_spec"]
    components = body["pipeline_spec"]["pipeline_spec"]["components"]
    tasks = components["comp-exit-handler-1"]["dag"]["tasks"]
    assert {"prepare", "train-victim"} < set(tasks)
    assert not any(task.get("cachingOptions", {}).get("enableCache") for task in tasks.values())
    with pytest.raises(InputError, match="six fields, seconds first"):
        board(server).repeat(grid[0], "0 3 * * *")


def test_a_pair_has_one_schedule(server, grid):
    server.page = 1
    here = board(server)
    for package in grid:
        here.repeat(package, "0 0 3 * * *")
    for package in grid:
        said = here.repeat(package, "0 0 4 * * *")
        assert said.endswith(f"there already, every 0 0 3 * * *; --cancel 'signs {package.attack}' "
                             "ends it")  # fmt: skip
    assert len(server.recurring) == len(grid)


def test_a_schedule_can_be_cancelled(server, grid):
    here = board(server)
    here.repeat(grid[0], "0 0 3 * * *")
    here.repeat(grid[1], "0 0 3 * * *")
    with pytest.raises(InputError, match=r"there is signs benign \(a schedule\), signs "):
        here.cancel("another")
    assert here.cancel("signs benign") == ["signs benign: its schedule is deleted"]
    assert [one["display_name"] for one in server.recurring] == [f"signs {grid[1].attack}"]


def test_a_run_under_way_can_be_cancelled(server):
    server.add("one", "SUCCEEDED")
    server.add("two", "RUNNING")
    with pytest.raises(InputError, match="no run 'one' is under way: there is two"):
        board(server).cancel("one")
    assert board(server).cancel("two") == ["two: asked to end"]
    assert [run["state"] for run in server.runs] == ["SUCCEEDED", "CANCELING"]


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """No login but that of the test."""
    for name in ("KFP_TOKEN", "KFP_COOKIES", "KFP_CA", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"KFP_TOKEN": "word"}, {"Authorization": "Bearer word"}),
        ({"KFP_COOKIES": "session=a; b=c"}, {"Cookie": "session=a; b=c"}),
        ({"KF_PIPELINES_SA_TOKEN_PATH": "token"}, {"Authorization": "Bearer the pod's"}),
        ({"KF_PIPELINES_SA_TOKEN_PATH": "token", "KFP_TOKEN": "w"}, {"Authorization": "Bearer w"}),
        ({"KF_PIPELINES_SA_TOKEN_PATH": "none"}, {}),
    ],
)
def test_every_question_is_asked_as_whom_the_environment_names(
    server, tmp_path, monkeypatch, given, sent
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("the pod's\n")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    board(server).runs()
    for path in ("/healthz", "/experiments", "/runs"):
        headers = {name.title(): value for name, value in server.headers[path].items()}
        named = {name: headers[name] for name in ("Authorization", "Cookie") if name in headers}
        assert named == sent, path


def test_certificates_of_another_authority(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_CA", str(tmp_path / "ca.pem"))
    with pytest.raises(InputError, match="KFP_CA: there is no file"):
        board(server)
    (tmp_path / "ca.pem").write_text("")
    assert Login.of_environment().authority == str(tmp_path / "ca.pem")


def test_the_environments_token_is_taken_without_its_line_break(monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "abc\n")
    assert Login.of_environment().headers()["Authorization"] == "Bearer abc"


def test_neither_token_nor_cookies_are_printed(monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "secret-word")
    monkeypatch.setenv("KFP_COOKIES", "secret-word")
    assert "secret-word" not in repr(Login.of_environment())


def test_for_many_users_runs_are_in_the_namespace(server):
    server.health = {"multi_user": True}
    assert board(server).namespace == "ml"
    server.health = {"multi_user": False}
    assert board(server).namespace is None


def test_what_passes_by_itself_is_waited_for(server, grid):
    server.endings = {grid[0].name: ["RUNNING", "SUCCEEDED"]}
    server.instead = [503, CUT, 429, 500]
    lines = []
    patience = Patience(first_s=0, say=lines.append)
    states = submit(board(server), grid[:1], wait=True, pause=0, patience=patience)
    assert states == {grid[0].name: "SUCCEEDED"}
    assert len(server.runs) == 1
    # A connection that is cut, the client tries again by itself.
    assert len(lines) == 3, lines
    assert lines[0] == "Kubeflow: answered 503 Service Unavailable; asked again in 0 s"


def test_a_start_whose_answer_is_lost_is_not_made_twice(server, grid):
    server.lose_starts = 1
    submit(board(server), grid[:1], patience=Patience(first_s=0, say=lambda line: None))
    assert names(server) == [grid[0].name]


def test_patience_ends(server, grid):
    server.instead = [503] * 9
    patience = Patience(limit_s=0, say=lambda line: None)
    with pytest.raises(KubeflowError, match=r"answered 503 .*; what runs there goes on"):
        submit(board(server), grid[:1], patience=patience)


def test_pauses_grow_and_begin_anew(monkeypatch):
    slept = []
    monkeypatch.setattr("pipelines.patience.time.sleep", slept.append)
    patience = Patience(say=lambda line: None)
    for _ in range(6):
        patience.wait(OSError("gone"))
    patience.over()
    patience.wait(OSError("gone"))
    assert slept == [5, 10, 20, 40, 60, 60, 5]


@pytest.mark.parametrize("instead", [PAGE, 401, 403])
def test_a_login_that_expires_starts_nothing_and_ends_with_one_line(
    server, tmp_path, capsys, monkeypatch, instead
):
    monkeypatch.setenv("KFP_COOKIES", "session=old")
    server.instead = [instead]
    done = command(server, tmp_path, *PAIR, "--no-preflight", "--wait", "--pause", "0")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "KFP_COOKIES" in line
    assert server.runs == []


def test_who_is_not_logged_in_is_told_so(server, tmp_path):
    server.health = PAGE
    done = command(server, tmp_path, *PAIR, "--no-preflight")
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {server.address} asks for a login: set KFP_TOKEN or KFP_COOKIES\n"
    )


def command(server, tmp_path, *words):
    numbers = params.read(ROOT / "params.yaml")
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({**numbers, "cluster": GPU}))
    out = str(tmp_path / "out")
    given = ["submit", "--params", str(file), "--out", out, "--endpoint", server.address, *words]
    return CliRunner().invoke(app, given)


PAIR = ("--dataset", "signs", "--attack", "badnets")


def test_the_command_submits_and_waits(server, tmp_path):
    server.endings = {"": []}
    dry = command(server, tmp_path, *PAIR, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert server.runs == []
    name = dry.output.partition("  ")[0]
    server.endings = {name: ["RUNNING", "SUCCEEDED"]}
    done = command(server, tmp_path, *PAIR, "--no-preflight", "--wait", "--pause", "0")
    assert done.exit_code == 0, done.output
    said = [line for line in done.output.splitlines() if line.startswith(f"{name}: ")]
    assert said == [f"{name}: {state}" for state in ("PENDING", "RUNNING", "SUCCEEDED")]


def test_a_failed_run_is_exit_code_1(server, tmp_path):
    name = command(server, tmp_path, *PAIR, "--dry-run").output.partition("  ")[0]
    server.endings = {name: ["FAILED"]}
    done = command(server, tmp_path, *PAIR, "--no-preflight", "--wait", "--pause", "0")
    assert done.exit_code == 1
    assert f"{name}: Kubeflow names no task" in done.output


def test_the_command_recurs_and_cancels(server, tmp_path):
    done = command(server, tmp_path, *PAIR, "--no-preflight", "--every", "0 0 3 * * *")
    assert done.exit_code == 0, done.output
    assert len(server.recurring) == 1
    run = server.add("mine", "RUNNING")
    assert "mine: asked to end" in command(server, tmp_path, "--cancel", "mine").output
    assert run["state"] == "CANCELING"


def test_a_cluster_that_is_not_ready_gets_no_run(server, tmp_path, kubernetes_at):
    kubernetes_at("http://127.0.0.1:1")
    done = command(server, tmp_path, *PAIR)
    assert done.exit_code == 1
    assert "fail  api" in done.output
    assert server.runs == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --dataset and --attack, or --grid, or --cancel"),
        (("--grid", "--dataset", "signs"), "give --dataset and --attack, or --grid, or --cancel"),
        (("--dataset", "signs"), "give --dataset and --attack, or --grid"),
        (("--dataset", "signs", "--attack", "x"), "unknown attack 'x': there is"),
        (("--dataset", "x", "--attack", "badnets"), "unknown dataset 'x': there is"),
    ],
)
def test_wrong_words_are_named(server, tmp_path, words, said):
    done = command(server, tmp_path, *words)
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith(said)
    assert server.runs == []


def test_kfps_own_command_submits_the_package(server, grid):
    words = ["--endpoint", server.address, "run", "create", "-e", "ngf", "-r", "mine"]
    code = "from kfp.cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "-f", str(grid[0].path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert names(server) == ["mine"]
