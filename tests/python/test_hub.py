"""`user/repo:quant` against a Hub on the loopback: choosing, resuming, verifying, offline."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ktransformers import _core
from ktransformers.checkpoint import download
from ktransformers.checkpoint.hub import choices, choose, resolve_model
from ktransformers.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model_bytes(path: Path, part: int = 0, count: int = 1, values: int = 1 << 16) -> bytes:
    out = _core.GgufWriter(str(path))
    if part == 0:
        out.add("general.architecture", "string", "llama")
        out.add("llama.block_count", "u32", 1)
        out.add("llama.embedding_length", "u32", 32)
    if count > 1:
        out.add("split.no", "u16", part)
        out.add("split.count", "u16", count)
    out.add_tensor(f"t{part}", "f32", (values,))
    out.write(np.random.default_rng(part).standard_normal(values).astype(np.float32))
    out.finish()
    content = path.read_bytes()
    path.unlink()
    return content


class Hub:
    """What of the Hub's protocol a download needs. `files`: (repo, name) -> bytes."""

    def __init__(self):
        self.files: dict[tuple[str, str], bytes] = {}
        self.requests: list[tuple[str, str, str | None, str | None]] = []  # + range, authorization
        self.cut_after: int | None = None  # bytes of a body, then the connection breaks
        self.status: int | None = None  # answered to everything
        self.without_ranges = False
        self.corrupt = False
        self.storage: Hub | None = None  # files are redirected there
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def gets(self) -> list[str]:
        """The ranges asked for by GETs of files ("" for a whole file)."""
        return [
            r or "" for method, path, r, _ in self.requests if method == "GET" and "resolve" in path
        ]

    def answer(self, request, body: bool):
        path = request.path.partition("?")[0]
        wanted = request.headers.get("Range")
        self.requests.append((request.command, path, wanted, request.headers.get("Authorization")))

        def reply(status, content=b"", length=None, **headers):
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.send_header("Content-Length", str(len(content) if length is None else length))
            request.end_headers()
            if body:
                request.wfile.write(content)

        if self.status is not None:
            return reply(self.status, b"{}")
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", path):
            names = [name for repo, name in self.files if repo == api[1]]
            if not names:
                code = {"X_Error_Code": "RepoNotFound"}
                return reply(404, b'{"error":"Repository not found"}', **code)
            siblings = [{"rfilename": n, "size": len(self.files[api[1], n])} for n in names]
            info = {"id": api[1], "modelId": api[1], "sha": COMMIT, "siblings": siblings}
            return reply(200, json.dumps(info).encode(), Content_Type="application/json")
        if tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                for (repo, name), content in self.files.items()
                if repo == tree[1]
            ]
            return reply(200, json.dumps(entries).encode(), Content_Type="application/json")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        content = self.files.get((match[1], match[2])) if match else None
        if content is None:
            return reply(404, b"{}", X_Error_Code="EntryNotFound")
        headers = {
            "X_Repo_Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept_Ranges": "bytes",
        }
        if self.storage is not None:
            headers |= {"X_Linked_ETag": headers["ETag"], "X_Linked_Size": str(len(content))}
            return reply(302, b"", Location=self.storage.url + path, **headers)
        if self.corrupt:
            content = bytes(len(content))
        status, start = 200, 0
        if wanted and not self.without_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status = 206
        rest = content[start:]
        if body and self.cut_after is not None:
            reply(status, rest[: self.cut_after], len(rest), **headers)
            request.wfile.flush()
            request.close_connection = True
            return None
        return reply(status, rest, **headers)


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def resolve(hub, tmp_path):
    """resolve(name, **environment) -> (path or None, stderr) of a fresh process."""

    def run(name: str, **environment) -> tuple[Path | None, str]:
        code = (
            "import sys\n"
            "from ktransformers.checkpoint.gguf import open_model\n"
            "from ktransformers.checkpoint.hub import resolve_model\n"
            "from ktransformers.checkpoint import download\n"
            "from ktransformers.errors import UserError\n"
            "download.MAX_FAILURES = 2  # do not wait long\n"
            "try:\n"
            "    path = resolve_model(sys.argv[1])\n"
            "    open_model(path)\n"
            "except UserError as error:\n"
            "    sys.exit(f'error: {error}')\n"
            "assert not {'torch', 'transformers'} & set(sys.modules)\n"
            "print(path)\n"
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KT_"))}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            env=env | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return (Path(done.stdout.strip()) if done.returncode == 0 else None), done.stderr

    return run


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "home").rglob("*.kt-partial"))


def test_a_model_is_downloaded_once(hub, resolve, tmp_path):
    hub.files["u/r", "m-Q4_1.gguf"] = content = model_bytes(tmp_path / "x")
    hub.files["u/r", "README.md"] = b"x"
    path, said = resolve("u/r")
    assert path.name == "m-Q4_1.gguf" and path.read_bytes() == content
    assert "downloading u/r:m-Q4_1" in said
    assert hub.gets() == [""] and not partials(tmp_path)
    path, said = resolve("u/r:q4_1")
    assert path.read_bytes() == content and said == ""
    assert hub.gets() == [""], "downloaded again"


def test_an_interrupted_download_is_continued(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = content = model_bytes(tmp_path / "x")
    hub.cut_after = 100_000
    # Every connection breaks after 100,000 bytes: one process reconnects until it has all.
    path, said = resolve("u/r")
    assert path is not None, said
    assert path.read_bytes() == content
    starts = [int(r[6:-1]) for r in hub.gets()[1:]]
    assert starts == [100_000, 200_000]


def test_a_killed_download_is_continued_by_the_next(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = content = model_bytes(tmp_path / "x")
    blobs = tmp_path / "home/hub/models--u--r/blobs"
    blobs.mkdir(parents=True)
    partial = blobs / (hashlib.sha256(content).hexdigest() + ".kt-partial")
    partial.write_bytes(content[:150_000])  # what a killed process leaves
    path, said = resolve("u/r")
    assert path.read_bytes() == content and not partials(tmp_path)
    assert hub.gets() == ["bytes=150000-"]
    assert "of it already here" in said


def test_giving_up_keeps_what_has_arrived(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = content = model_bytes(tmp_path / "x")
    hub.cut_after = 0
    path, said = resolve("u/r")
    assert path is None and "what has arrived is kept" in said.splitlines()[-1]
    hub.cut_after = None
    assert resolve("u/r")[0].read_bytes() == content


def test_a_server_without_ranges_starts_over(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = content = model_bytes(tmp_path / "x")
    blobs = tmp_path / "home/hub/models--u--r/blobs"
    blobs.mkdir(parents=True)
    (blobs / (hashlib.sha256(content).hexdigest() + ".kt-partial")).write_bytes(b"?" * 1000)
    hub.without_ranges = True
    path, said = resolve("u/r")
    assert path is not None, said
    assert path.read_bytes() == content


def test_damage_is_noticed_and_not_kept(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = model_bytes(tmp_path / "x")
    hub.corrupt = True
    path, said = resolve("u/r")
    assert path is None and "arrived damaged" in said and not partials(tmp_path)
    hub.corrupt = False
    assert resolve("u/r")[0] is not None


def test_a_redirect_to_storage_drops_the_token(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = content = model_bytes(tmp_path / "x")
    hub.storage = Hub()
    hub.storage.files = hub.files
    path, _ = resolve("u/r", HF_TOKEN="hf_secret")
    assert path.read_bytes() == content
    assert any(token == "Bearer hf_secret" for *_, token in hub.requests)
    assert hub.storage.requests and all(token is None for *_, token in hub.storage.requests)
    hub.storage.close()


def test_split_models_bring_every_part(hub, resolve, tmp_path):
    for i in range(3):
        name = f"Q8_0/m-Q8_0-{i + 1:05d}-of-00003.gguf"
        hub.files["u/r", name] = model_bytes(tmp_path / "x", i, 3)
    hub.files["u/r", "Q4_K_M/m-Q4_K_M.gguf"] = model_bytes(tmp_path / "x")
    hub.files["u/r", "mmproj-F16.gguf"] = b"not a model"
    path, said = resolve("u/r:Q8_0")
    assert path.name == "m-Q8_0-00001-of-00003.gguf"
    assert len(hub.gets()) == 3 and "downloading u/r:Q8_0, 0.00 GB" in said
    path, said = resolve("u/r")
    assert path is None and said.count("\n") == 1
    assert said.startswith("error: u/r: holds 2 models, add one as u/r:QUANT: Q4_K_M (")


def test_offline_uses_what_is_there_and_connects_to_nothing(hub, resolve, tmp_path):
    hub.files["u/r", "m-Q4_1.gguf"] = content = model_bytes(tmp_path / "x")
    hub.files["u/r", "m-Q8_0.gguf"] = model_bytes(tmp_path / "x", values=100)
    assert resolve("u/r:Q4_1")[0]
    hub.requests.clear()
    for variable in ("KT_OFFLINE", "HF_HUB_OFFLINE"):
        path, said = resolve("u/r:Q4_1", **{variable: "1"})
        assert path.read_bytes() == content and said == ""
        path, said = resolve("u/r:Q8_0", **{variable: "1"})
        assert path is None and "has no 'Q8_0'; it has m-Q4_1" in said
        path, said = resolve("u/other", **{variable: "1"})
        assert path is None and "nothing of it has been downloaded and this is offline" in said
    assert not hub.requests


def test_without_a_connection_the_downloaded_model_still_runs(hub, resolve, tmp_path):
    hub.files["u/r", "m.gguf"] = content = model_bytes(tmp_path / "x")
    assert resolve("u/r")[0]
    path, _ = resolve("u/r", HF_ENDPOINT="http://127.0.0.1:9")
    assert path.read_bytes() == content
    path, said = resolve("u/new", HF_ENDPOINT="http://127.0.0.1:9")
    assert path is None and said.startswith("error: u/new: http://127.0.0.1:9 failed (")


def test_what_the_hub_refuses_is_one_line(hub, resolve):
    path, said = resolve("u/absent:Q4_K_M")
    assert path is None and said.count("\n") == 1
    assert "u/absent: no such file or folder here, and no such repository" in said
    hub.files["u/r", "model.safetensors"] = b"x"
    path, said = resolve("u/r")
    assert path is None and "u/r: holds no .gguf file" in said
    hub.files["u/evil", "../../m.gguf"] = b"x"
    path, said = resolve("u/evil")
    assert path is None and "u/evil: holds no .gguf file" in said


def test_config_files_come_without_weights_or_code(hub, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "modeling_x.py", "a.bin"):
        hub.files["u/r", name] = b"{}"
    code = "from ktransformers.checkpoint.hub import resolve_config as r\nprint(r('u/r'))"
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env | {"KT_OFFLINE": offline},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        names = sorted(p.name for p in Path(done.stdout.strip()).iterdir())
        assert names == ["config.json", "tokenizer.json"]


def test_local_paths_win_and_need_no_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u" / "r").mkdir(parents=True)
    assert resolve_model("u/r") == Path("u/r")
    for name in ("/a/b/m.gguf", "x/m.gguf", "m.gguf", "./u/r", "a/b/c"):
        assert resolve_model(name) == Path(name)


NAMES = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-UD-Q4_K_M.gguf", "m-IQ4_XS.gguf", "m-Q2_K.gguf"]


@pytest.mark.parametrize(
    "quant, file",
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_s", "m-Q4_K_S.gguf"),
        ("UD-Q4_K_M", "m-UD-Q4_K_M.gguf"),
        ("XS", "m-IQ4_XS.gguf"),
        ("Q2_K", "m-Q2_K.gguf"),
        ("UD", "m-UD-Q4_K_M.gguf"),
    ],
)
def test_a_quant_is_chosen_by_part_of_the_name(quant, file):
    assert choose("u/r", choices(dict.fromkeys(NAMES)), quant).files == [file]


def test_a_quant_that_is_not_clear_lists_what_could_be_meant():
    found = choices(dict.fromkeys(NAMES, 2_500_000_000))
    with pytest.raises(UserError, match=r"'Q4_K' could be any of Q4_K_M \(2\.5 GB\), Q4_K_S"):
        choose("u/r", found, "Q4_K")
    with pytest.raises(UserError, match="has no 'Q6_K'; it has IQ4_XS.*Q2_K.*Q4_K_M.*UD-Q4_K_M"):
        choose("u/r", found, "Q6_K")


def test_models_in_folders_of_one_name_are_told_apart():
    found = choices({"Q4_0/model.gguf": 1, "Q8_0/model.gguf": 2})
    assert [c.label for c in found] == ["Q4_0/model", "Q8_0/model"]
    assert choose("u/r", found, "Q8_0").files == ["Q8_0/model.gguf"]


def test_two_downloads_of_one_file_do_not_mix(tmp_path):
    blob = tmp_path / ("0" * 64)
    remote = download.RemoteFile("http://127.0.0.1:9/x", blob.name, 100)
    with (tmp_path / f"{blob.name}.kt-partial").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="u/r/m.gguf: another process is downloading it"):
            download.fetch(blob, remote, "u/r/m.gguf")
    assert not blob.exists()


def test_a_download_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"needs 2\.9 GB, 3\.0 GB are free; make room"):
        download.check_space(tmp_path / "not" / "yet", 2_900_000_000)
    download.check_space(tmp_path, 2_500_000_000)
