"""schemathesis on the OpenAPI document of a real server: no server error, nothing unlike it.

KT_SCHEMATHESIS=N generates N examples for each operation and runs the coverage phase too, as
`make check` does; without it a few seconds' worth.
"""

import os
import subprocess
import sys

import pytest

from tests.support.miniatures import miniature, write
from tests.support.serving import Server

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mini.gguf"
    write(miniature("llama", types="Q8_0"), path)
    flags = ("--model_name", "default", "--cache_lens", "2048", "--max_new_tokens", "4")
    with Server(path, *flags) as server:
        yield server


@pytest.mark.timeout(3000 if "KT_SCHEMATHESIS" in os.environ else 300)
def test_no_server_errors_and_no_schema_violations(server, tmp_path):
    examples = os.environ.get("KT_SCHEMATHESIS")
    phases = "examples,coverage,fuzzing" if examples else "examples,fuzzing"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
        "--checks", CHECKS, "--max-examples", examples or "6", "--phases", phases,
        "--seed", "7", "--generation-database", "none", "--request-timeout", "60",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3000)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in server.log, server.log
    assert server.json("/health") == {"status": "ok", "running": 0, "waiting": 0}
