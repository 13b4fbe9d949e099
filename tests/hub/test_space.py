"""A Space for a model: its files, one commit whatever fails, and a program that is the page."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_vitmae.cli import main
from hf_vitmae.hub.push import Patience
from hf_vitmae.hub.space import push_space, space_files

from ..tasks.small_models import save_small_model
from .client import SENDING, Hub

pytestmark = pytest.mark.filterwarnings(SENDING)
WITHOUT_LISTENING = """
import runpy, sys
from hf_vitmae.tasks import app

def tell(page, request):
    print(type(page).__name__, request.model, request.host, request.port)

app.launch = tell
runpy.run_path(sys.argv[1], run_name="__main__")
"""
QUICK = Patience(attempts=4, first_wait=0.01, longest_wait=0.01)


def log(hub: Hub, name: str) -> list[dict[str, Any]]:
    """The commits of a Space after the Hub's own first one."""
    return hub.repo(name, "spaces")["log"][1:]


def test_its_card_names_the_model_and_the_page() -> None:
    files = space_files("lab/my-mae", "apache-2.0")
    _, front, said = files["README.md"].split("---\n")
    card = yaml.safe_load(front)
    assert card["sdk"] == "gradio" and card["app_file"] in files and card["sdk_version"][0] == "6"
    assert card["models"] == ["lab/my-mae"] and card["license"] == "apache-2.0"
    assert "lab/my-mae" in said and files["requirements.txt"] == "hf-vitmae[app]\n"
    assert "license" not in space_files("lab/my-mae")["README.md"]


@pytest.mark.slow  # starts Python
def test_its_program_is_the_page_of_the_model(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "small")
    (tmp_path / "app.py").write_text(space_files(str(model))["app.py"])
    command = [sys.executable, "-c", WITHOUT_LISTENING, str(tmp_path / "app.py")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["Blocks", str(model), "0.0.0.0", "7860"]


@pytest.mark.parametrize("route", ["create", "preupload", "commit"])
def test_faults_leave_one_commit_and_a_second_push_none(hub: Hub, route: str) -> None:
    name = f"user/space-{route}"
    hub.fault(route, {"status": 503}, {"status": 502})
    push_space(name, hub.api, patience=QUICK)
    (pushed,) = log(hub, name)
    push_space(name, hub.api, patience=QUICK)
    assert log(hub, name) == [pushed]
    found = hub.api.list_repo_files(name, repo_type="space")
    assert {"app.py", "requirements.txt", "README.md"} <= set(found)


def test_push_makes_the_model_and_its_space(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = save_small_model(tmp_path / "small")
    assert main(["push", str(model), "user/shown", "--with-space"]) == 0
    assert f"{hub.endpoint}/spaces/user/shown" in capsys.readouterr().out
    assert len(log(hub, "user/shown")) == 1 and len(hub.pushes("user/shown")) == 1
    assert main(["push", str(model), "user/shown", "--with-space", "--create-pr"]) == 2
    assert "default branch" in capsys.readouterr().err
