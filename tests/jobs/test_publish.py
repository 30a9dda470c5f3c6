"""An exported folder on the hub: what its card says there, what a dry run shows, a push to a server of ours."""

import base64
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import copy_project  # noqa: F401  as the fixture `project` needs
from huggingface_hub import ModelCard

from dearkd import disk, record
from dearkd.__main__ import main
from dearkd.jobs import publish
from dearkd.plan import experiments

EXPORT = ["export", "dearkd-Ti", "--scale", "smoke", "--out", "out"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a push of small files asks for; it refuses with `refused`, if set."""

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        self.answer({"id": "us/ours", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            names, how = [file["path"] for file in json.loads(body)["files"]], {"uploadMode": "regular"}
            return self.answer({"files": [{"path": name, "shouldIgnore": False, **how} for name in names]})
        place = f"http://127.0.0.1:{self.server.server_port}/us/ours"
        self.answer({"url": place, "errors": [], "warnings": [], "commitUrl": f"{place}/commit/1", "commitOid": "1"})

    def answer(self, values):
        self.send_response(self.server.refused if self.server.refused and self.command != "HEAD" else 200)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(json.dumps(values).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        server.seen, server.refused = [], 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def pushed(port, *options):
    """The verb in a process of its own: the hub's address is read when its library is imported."""
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_TOKEN": "hf_ours", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "dearkd", *EXPORT, "--push", "us/ours", *options]
    return subprocess.run(command, env={**environment, "PATH": "", "HOME": "."}, capture_output=True, text=True)


def test_a_push_sends_the_folder_and_nothing_else_to_a_private_repository(project, hub):
    Path("out").mkdir()
    Path("out/diary.txt").write_text("mine")
    done = pushed(hub.server_port)
    assert done.returncode == 0, done.stderr
    paths = [path for path, _ in hub.seen]
    asked = json.loads(hub.seen[0][1])  # in the words of a newer or an older protocol
    assert paths[0] == "/api/repos/create" and (asked.get("visibility") == "private" or asked.get("private") is True)
    (commit,) = [body for path, body in hub.seen if path.endswith("/commit/main")]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
    assert sent.keys() == {"README.md", "config.json", "model.safetensors"}
    assert all((Path("out") / name).read_bytes() == raw for name, raw in sent.items())
    assert lines[0]["value"]["summary"] == "dearkd-Ti, seed 0, scale smoke"
    assert 'create_model("hf-hub:us/ours", pretrained=True)' in sent["README.md"].decode()
    assert (
        done.stdout.splitlines()[-1]
        == 'Load it: import timm, dearkd.models; timm.create_model("hf-hub:us/ours", pretrained=True)'
    )


def test_a_hub_that_refuses_or_is_not_there_is_one_sentence_and_the_folder_stays(project, hub):
    hub.refused = 403
    done = pushed(hub.server_port)
    assert (
        done.returncode == 2 and "refuses (403); run `hf auth login`" in done.stderr and "Traceback" not in done.stderr
    )
    assert Path("out/model.safetensors").is_file()
    done = pushed(9)
    assert done.returncode == 2 and "http://127.0.0.1:9 does not answer; nothing was sent" in done.stderr


def test_a_dry_run_lists_files_and_sha256_and_asks_nobody(project, capsys):
    assert main([*EXPORT, "--push", "us/ours", "--dry-run"]) == 0
    said = capsys.readouterr().out
    listed = dict(re.findall(r"^(\S+)  [\d,]+ bytes  sha256 ([0-9a-f]{64})$", said, re.MULTILINE))
    assert listed == {p.name: disk.sha256(p) for p in Path("out").iterdir()} and "/us/ours" in said


@pytest.mark.parametrize(
    "options, said",
    [(["--dry-run"], "name the repository"), (["--push", "ours"], "name its owner"), (["--push", "a/b c"], "a/b c")],
)
def test_what_is_no_repository_is_refused_before_anything_is_written(project, capsys, options, said):
    assert main([*EXPORT, *options]) == 2
    assert said in capsys.readouterr().err and not Path("out").exists()


def test_the_hub_reads_results_and_classes_from_what_is_exported(project):
    assert main(EXPORT) == 0
    data = ModelCard.load("out/README.md").data
    tested = record.read(Path("results/smoke/runs/dearkd-Ti/seed0/metrics.json"))["metrics"]
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {f"top-{k} accuracy (%)": pytest.approx(tested[f"top{k}"], abs=1e-4) for k in (1, 5)}
    assert (data.library_name, data.metrics, data.model_name) == ("timm", ["accuracy"], "dearkd-Ti-smoke")
    assert data.base_model is None and data.datasets is None, "its teacher is ours, and its images are in no hub"
    assert json.loads(Path("out/config.json").read_text())["label_names"] == list("0123456789")


def test_a_teacher_of_the_hub_is_the_base_model_and_its_images_the_data_set(monkeypatch):
    for name in ("CIFAR", "IMAGENET", "TRANSFER"):
        monkeypatch.setenv(name, "/nowhere")
    tested = {"metrics": {"top1": 50.0}}
    run = experiments.load("imagenet").runs["dearkd-Ti"]
    taught = publish.metadata("x", run.stages, "s", tested)
    assert "base_model:\n- timm/regnety_160" in taught and "datasets" not in taught
    run = experiments.load("cifar").runs["deit-Ti"]
    assert "datasets:\n- uoft-cs/cifar10" in publish.metadata("x", run.stages, "s", tested)
