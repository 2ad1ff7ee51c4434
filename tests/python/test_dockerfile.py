"""Dockerfile and compose file say the same, and all lines of a target are found."""

import re
from pathlib import Path

import pytest
import yaml

from tests.tools.dockerfile_lines import calls, instructions

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_line_of_a_target_is_run(target):
    made = calls(TEXT, target)
    names = [call[1] for call in made if call[0] == "stage"]
    assert names[-1] == target and len(names) == 2
    stages = re.split(r"^FROM .* AS ", TEXT, flags=re.M)
    wanted = sum(
        word == "RUN"
        for stage in stages
        if stage.partition("\n")[0] in names
        for word, _ in instructions(stage.partition("\n")[2])
    )
    runs = [call[1] for call in made if call[0] == "do_run"]
    assert len(runs) == wanted >= 6
    assert any("pip install --no-cache-dir /src" in run for run in runs)
    assert made[-1][:4] == ["do_start", "ktransformers", "serve", "--gguf_path"]
    assert ["do_user", "kt"] in made, "the server runs as root"


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="ADD"):
        calls("FROM debian:bookworm AS a\nADD x /x\n", "a")
    with pytest.raises(ValueError, match="no such target"):
        calls("FROM debian:bookworm AS a\nRUN true\n", "b")


def test_the_same_torch_as_everywhere():
    (wanted,) = re.findall(r"^TORCH \?= (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert f"ARG TORCH={wanted}\n" in TEXT


def test_compose_builds_the_targets_and_shows_them_to_this_machine_only():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"cpu", "cuda"}
    for name, service in services.items():
        assert service["build"]["target"] == name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["volumes"][0].endswith(":/models:ro")
        assert service["stop_signal"] == "SIGINT" and service["cap_drop"] == ["ALL"]
