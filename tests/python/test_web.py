"""The built chat page: of these sources, whole, small, and asking nobody outside for anything.

The page itself is tested in a browser by `make web_test`, which `make check` runs too; this needs
neither node nor browser.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ktransformers.server.static_files import POLICY

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
STATIC = ROOT / "ktransformers/server/static"

# What the page is built from: web/scripts/sources.mjs says the same.
SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"]
FOLDERS = ["public", "scripts", "src"]
MAX_COMPRESSED = 600_000

# Addresses that stand in the built files as mere text: names of XML dialects, and the pages that
# error messages of libraries and the Markdown parser's documentation mention. None is fetched.
NAMES = re.compile(
    r"https?://(www\.w3\.org/|react\.dev/(errors|link)/|github\.com/|katex\.org|localhost\b)"
)
FETCHED = re.compile(
    r"""(?:src|href|action)\s*=\s*["']?(https?:)?//"""  # HTML
    r"""|url\(\s*["']?(https?:)?//|@import\s+["'](https?:)?//"""  # CSS
    r"""|(?:import|fetch|importScripts)\s*\(\s*["'`](https?:)?//""",  # JavaScript
    re.I,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def source_hash(root: Path) -> str:
    below = [p for folder in FOLDERS for p in (root / folder).rglob("*") if p.is_file()]
    paths = sorted([*SOURCES, *(p.relative_to(root).as_posix() for p in below)])
    lines = (f"{path}\0{sha256((root / path).read_bytes())}\n" for path in paths)
    return sha256("".join(lines).encode())


def outside_addresses(text: str) -> list[str]:
    """Addresses elsewhere that a file would fetch, or that are not known to be mere text."""
    fetched = [match[0] for match in FETCHED.finditer(text)]
    named = [one for one in re.findall(r"https?://[\w.-]+\.\w+[^\s\"'`<>)\\]*", text)]
    return fetched + [one for one in named if not NAMES.match(one)]


@pytest.fixture(scope="module")
def build() -> dict:
    return json.loads((STATIC / "build.json").read_text())


def test_built_from_these_sources(build):
    assert build["sources"] == source_hash(WEB), "web/ has changed since the build: run `make web`"


def test_every_file_is_as_built(build):
    found = {p.relative_to(STATIC).as_posix() for p in STATIC.rglob("*") if p.is_file()}
    assert found == {*build["files"], "build.json"}
    for path, expected in build["files"].items():
        data = (STATIC / path).read_bytes()
        assert {"bytes": len(data), "sha256": sha256(data)} == expected, path


def test_every_file_the_page_names_is_there(build):
    html = (STATIC / "index.html").read_text()
    named = re.findall(r'(?:src|href)="\./([^"]+)"', html)
    assert any(name.endswith(".js") for name in named) and any(n.endswith(".css") for n in named)
    for path in build["files"]:
        if path.endswith(".css"):
            named += ["assets/" + n for n in re.findall(r"url\(\./([^)]+)\)", text_of(path))]
        if path.endswith(".js"):
            named += re.findall(r'["`](assets/[\w.-]+\.(?:js|css))["`]', text_of(path))
            named += ["assets/" + n for n in re.findall(r'["`]\./([\w.-]+\.js)["`]', text_of(path))]
    assert sum(name.endswith(".woff2") for name in named) >= 20
    assert set(named) <= set(build["files"])


def text_of(path: str) -> str:
    return (STATIC / path).read_text(encoding="utf-8")


def test_small(build):
    data = {path: (STATIC / path).read_bytes() for path in build["files"]}
    packed = sum(
        len(one) if path.endswith(".woff2") else len(gzip.compress(one))
        for path, one in data.items()
    )
    assert packed <= MAX_COMPRESSED
    assert sum(map(len, data.values())) < 20_000_000


def test_nothing_from_outside(build):
    for path in build["files"]:
        if not path.endswith(".woff2"):
            assert outside_addresses(text_of(path)) == [], path


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link href='//fonts.example/f.css'>",
        "@font-face { src: url(//fonts.example/f.woff2) }",
        'fetch("https://telemetry.example/hit")',
        'const host = "https://telemetry.example"',
    ],
)
def test_an_outside_address_is_seen(planted):
    assert outside_addresses(planted)


def test_no_script_or_style_stands_in_the_page():
    html = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", html) == []
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]+)"', html)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    # The server's header says all of it, and what only a header can say.
    rules = {rule.strip() for rule in policy.split(";")}
    assert {rule.strip() for rule in POLICY.split(";")} - rules == {"frame-ancestors 'none'"}
    assert rules <= {rule.strip() for rule in POLICY.split(";")}


def test_words_of_both_languages_have_the_same_keys():
    """The type checker sees to it at build time; this catches a key commented out by hand."""
    keys = {
        name: re.findall(r"^  (\w+):", (WEB / f"src/i18n/{name}.ts").read_text(), re.M)
        for name in ("en", "zh")
    }
    assert keys["en"] == keys["zh"] and len(keys["en"]) > 100


def test_lock_file_names_no_registry():
    text = (WEB / "package-lock.json").read_text()
    assert '"integrity": "sha512-' in text
    assert '"resolved"' not in text


def test_the_page_is_in_the_wheel(build, monkeypatch):
    """By the patterns of pyproject.toml, as setuptools reads them."""
    from setuptools import glob
    from setuptools.config.pyprojecttoml import read_configuration

    monkeypatch.chdir(ROOT)
    patterns = read_configuration("pyproject.toml")["tool"]["setuptools"]["package-data"]
    taken = {
        Path(name).as_posix()
        for pattern in patterns["ktransformers"]
        for name in glob.glob(f"ktransformers/{pattern}", recursive=True)
    }
    assert {f"ktransformers/server/static/{path}" for path in build["files"]} <= taken


def test_logic_of_the_page():
    """Parsers, storage, Markdown, the plan's table: the page's own unit tests."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    if not (WEB / "node_modules/vitest").is_dir():
        pytest.skip("the page's packages are not here: `make web_test` fetches them")
    ran = subprocess.run(
        ["node", "node_modules/vitest/vitest.mjs", "run", "--reporter=verbose"],
        cwd=WEB, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"Tests +[1-9]\d+ passed", ran.stdout), ran.stdout
