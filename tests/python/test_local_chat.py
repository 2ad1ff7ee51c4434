"""The chat: flags, conversation, keyboard, bad input. Engine scripted, tokenizer real."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ktransformers.cli import serve_flags
from ktransformers.cli.chat_flags import PARSER, gpu_flag_notes
from ktransformers.cli.conversation import Conversation
from ktransformers.cli.fire_flags import asks_for_help
from ktransformers.errors import UserError
from tests.support import smollm2
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
ENGINE = [sys.executable, "-m", "tests.support.scripted_engine"]
STATISTICS = re.compile(
    r"prompt eval count:    \d+ token\(s\)\n"
    r"prompt eval duration: [\d.]+s\n"
    r"prompt eval rate:     [\d.]+ tokens/s\n"
    r"eval count:           \d+ token\(s\)\n"
    r"eval duration:        [\d.]+s\n"
    r"eval rate:            [\d.]+ tokens/s\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "mini.gguf"
    write(miniature("llama"), path)
    return str(path)


def environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    own = {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    own |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    return os.environ | own | extra


def run(words, tmp_path, text="", command=ENGINE, **extra):
    return subprocess.run(
        [*command, *words],
        cwd=ROOT,
        env=environment(tmp_path, **extra),
        input=text if isinstance(text, bytes) else text.encode(),
        capture_output=True,
        timeout=120,
    )


# ---- flags ----


@pytest.mark.parametrize(
    "words, name, value",
    [
        ("--cpu_infer 8", "cpu_infer", 8),
        ("--cpu_infer=8", "cpu_infer", 8),
        ("-cpu_infer 8", "cpu_infer", 8),
        ("-cpu_infer=8", "cpu_infer", 8),
        ("--cpu-infer 8", "cpu_infer", 8),
        ("--cpu-infer=8", "cpu_infer", 8),
        ("--force_think", "force_think", True),
        ("--force-think", "force_think", True),
        ("--force_think True", "force_think", True),
        ("--force_think=1", "force_think", True),
        ("--noforce_think", "force_think", False),
        ("--no-use-cuda-graph", "use_cuda_graph", False),
        ("--use_cuda_graph False", "use_cuda_graph", False),
        ("--use_cuda_graph=false", "use_cuda_graph", False),
        ("--use_cuda_graph --cpu_infer 3", "cpu_infer", 3),
        ("--optimize_rule_path a.yaml", "optimize_config_path", "a.yaml"),
        ("--optimize-rule-path=a.yaml", "optimize_config_path", "a.yaml"),
        ("--optimize_config_path None", "optimize_config_path", None),
        ("--temperature 0", "temperature", 0.0),
        ("--temperature 1e-1", "temperature", 0.1),
        ("--prompt=-3", "prompt", "-3"),
        ("--prompt -3", "prompt", "-3"),
        ("--gguf_path=a=b.gguf", "gguf_path", "a=b.gguf"),
        ("-g x.gguf", "gguf_path", "x.gguf"),
        ("--seed 1 --seed 2", "seed", 2),
        ("hf rules.yaml x.gguf 7", "max_new_tokens", 7),
        ("--model_path hf rules.yaml x.gguf", "gguf_path", "x.gguf"),
        ("--chunk_size 64 -- ", "chunk_size", 64),
        ("", "max_new_tokens", 1000),
        ("", "optimize_config_path", None),
    ],
)
def test_flag_spellings(words, name, value):
    assert PARSER.parse(words.split())[0][name] == value


@pytest.mark.parametrize(
    "words, message",
    [
        ("--cpu_infer 0", "--cpu_infer 0: must be at least 1"),
        ("--cpu_infer four", "--cpu_infer four: must be a whole number"),
        ("--cpu_infer 1.5", "must be a whole number"),
        ("--temperature nan", "must be a number"),
        ("--temperature -1", "must be from 0 to 100"),
        ("--top_p 0", "must be above 0, up to 1"),
        ("--seed -1", "--seed -1: must be from 0"),
        ("--activations half", "must be one of auto, exact, f32"),
        ("--mode fast", "must be one of normal, long_context"),
        ("--force_think maybe", "must be True or False"),
        ("--gguf_path", "--gguf_path needs a value"),
        ("--gguf_path --force_think", "--gguf_path needs a value"),
        ("--gguf_pth x", "unknown flag --gguf_pth; did you mean --gguf_path?"),
        ("-m x", "-m could be --model_path, --max_new_tokens"),
        ("--no_such x", "unknown flag --no_such"),
        (" ".join(["x"] * 40), "cannot place the word"),
    ],
)
def test_wrong_flags_are_named(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        PARSER.parse(words.split())


@pytest.mark.parametrize(
    ("words", "cards", "said"),
    [
        ("--device cuda:0", 0, ["--device cuda:0: no card is in use here, the CPU computes"]),
        ("--device cuda:0", 1, ["--device cuda:0: not used; rules, or the planner"]),
        ("--device cpu", 1, ["--device cpu: not used; rules, or the planner"]),
        ("--device cpu --use_cuda_graph False", 0, []),
        ("--use_cuda_graph True", 0, ["--use_cuda_graph True: no card is in use here"]),
        ("--use_cuda_graph True", 1, []),
        ("--use_cuda_graph False", 1, ["--use_cuda_graph False: not used; a card's decode steps"]),
        ("--device cuda:0 --gpu off", 1, ["--device cuda:0: no card is in use here"]),
        ("--cpu_infer 2", 1, []),
    ],
)
def test_what_old_scripts_say_of_gpus_is_answered_with_what_holds(monkeypatch, words, cards, said):
    found = lambda gpu: 0 if gpu == "off" else cards  # noqa: E731
    monkeypatch.setattr("ktransformers.optimize.gpus.cuda_devices", found)
    for parser in (PARSER, serve_flags.PARSER):
        lines = gpu_flag_notes(*parser.parse(words.split()))
        assert len(lines) == len(said)
        assert all(map(str.startswith, lines, said)), lines


def test_help_lists_every_flag():
    text = PARSER.help("usage: chat")
    assert all(f"--{flag.name} " in text for flag in PARSER.flags)
    assert asks_for_help(["--", "--help"])


# ---- bad input, seen before torch is there ----

CHECK_TORCH = (
    "import sys\n"
    "from ktransformers.local_chat import main\n"
    "status = main(sys.argv[1:])\n"
    "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
    "sys.exit(f'imported {heavy}' if heavy else status)\n"
)


def bad_files(folder: Path, model: str) -> dict[str, list[str]]:
    """Command lines that are wrong, by what the message must say."""
    data = Path(model).read_bytes()

    def file(name: str, content: bytes) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    (folder / "empty").mkdir()
    prompt = file("latin1.txt", b"one\ntwo \xe9\n")
    rules = file("bad.yaml", b"- match: {name: x\n")
    unknown = b"- match: {name: x}\n  replace: {operator: moe.expertz}\n  why: y\n"
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    good = ["--gguf_path", model]
    return {
        "no such file or folder": ["--gguf_path", str(folder / "none.gguf")],
        "is not a GGUF file": ["--gguf_path", file("notes.gguf", b"hello there, no model\n")],
        "Git": ["--gguf_path", file("lfs.gguf", lfs)],
        "is a web page": ["--gguf_path", file("page.gguf", b"<!DOCTYPE html><html></html>\n")],
        "cut.gguf": ["--gguf_path", file("cut.gguf", data[: len(data) // 2])],
        "is empty": ["--gguf_path", str(folder / "empty")],
        "gguf_path is missing": [],
        "--cpu_infer 0": [*good, "--cpu_infer", "0"],
        "unknown flag --banana": [*good, "--banana", "1"],
        "latin1.txt:2": [*good, "--prompt_file", prompt],
        "none.txt": [*good, "--prompt_file", str(folder / "none.txt")],
        "bad.yaml": [*good, "--optimize_config_path", rules],
        "moe.expertz": [*good, "--optimize_config_path", file("unknown.yaml", unknown)],
        "none.yaml: no such file": [*good, "--optimize_rule_path", str(folder / "none.yaml")],
        "no such folder": [*good, "--model_path", str(folder / "none")],
    }


def test_bad_input_ends_with_one_line_and_no_torch(tmp_path, model):
    for message, words in bad_files(tmp_path, model).items():
        done = run(words, tmp_path, command=[sys.executable, "-c", CHECK_TORCH])
        lines = [x for x in done.stderr.decode().splitlines() if not x.startswith("note:")]
        assert done.returncode == 2, (message, done.stderr.decode())
        assert len(lines) == 1 and lines[0].startswith("error: "), (message, lines)
        assert message in lines[0], (message, lines)
        assert not done.stdout, message


# ---- conversations through a pipe ----


def test_one_prompt(tmp_path, model):
    done = run(["--gguf_path", model, "--prompt", "say Tokyo, 東京"], tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    answer, _, statistics = done.stdout.decode().partition("\n")
    assert answer == "Tokyo, 東京"
    assert STATISTICS.fullmatch(statistics)
    assert "scripted model" in done.stderr.decode()


def test_turns_files_blocks_and_commands_through_a_pipe(tmp_path, model):
    saved, text = tmp_path / "chat.json", tmp_path / "question.txt"
    text.write_text("say from the file")
    prompt_file = tmp_path / "prompt.txt"
    prompt_file.write_text("say from the prompt file")
    script = [
        "say one",
        '"""say two',
        'lines"""',
        str(text),
        "",
        f"/save {saved}",
        "/clear",
        "recall",
        f"/load {saved}",
        "/stats",
        "recall",
        "/nonsense",
        "/load /nowhere/chat.json",
        "/help",
        "/exit",
        "say never",
    ]
    done = run(
        ["--gguf_path", model, "--prompt_file", str(prompt_file)], tmp_path, "\n".join(script)
    )
    out = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    for expected in ("one\n", "two\nlines\n", "from the file\n", "from the prompt file\n"):
        assert expected in out
    assert "recall\n" in out  # after /clear there was nothing else to recall
    messages = "say one | say two\nlines | say from the file | say from the prompt file | recall"
    assert messages in out
    assert "error: unknown command /nonsense" in out
    assert "error: /nowhere/chat.json: No such file" in out
    assert "(no answer yet)" in out and "of 4096 token(s)" in out
    assert "/save FILE" in out and "never" not in out
    assert saved.stat().st_mode & 0o077 == 0
    roles = [message["role"] for message in json.loads(saved.read_text())["messages"]]
    assert roles == ["user", "assistant"] * 4
    assert len(STATISTICS.findall(out)) == 6


def test_end_of_input_ends_cleanly(tmp_path, model):
    done = run(["--gguf_path", model], tmp_path, "say bye")
    assert done.returncode == 0 and done.stdout.decode().startswith("bye\n")


def test_input_that_is_not_utf8(tmp_path, model):
    done = run(["--gguf_path", model], tmp_path, b"say \xff\n")
    assert done.returncode == 2
    assert "error: standard input:1: byte 5 (0xff) is not UTF-8" in done.stderr.decode()


def test_prompt_longer_than_the_cache(tmp_path, model):
    words = ["--gguf_path", model, "--cache_lens", "64"]
    done = run([*words, "--prompt", "x" * 500], tmp_path)
    assert done.returncode == 2
    assert "the cache holds 64" in done.stderr.decode()
    done = run(words, tmp_path, "x" * 500 + "\nsay fine\n")
    assert done.returncode == 0
    assert "the cache holds 64" in done.stdout.decode() and "fine\n" in done.stdout.decode()


def test_the_three_ways_to_start_it():
    starts = [
        ([sys.executable, "ktransformers/local_chat.py"], ROOT),
        ([sys.executable, "-m", "ktransformers.local_chat"], ROOT),
        ([sys.executable, "-m", "local_chat"], ROOT),
        ([sys.executable, "-m", "local_chat"], ROOT / "ktransformers"),
    ]
    for command, folder in starts:
        done = subprocess.run([*command, "--help"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and "--gguf_path" in done.stdout, (command, done.stderr)
        done = subprocess.run(
            [*command, "--cpu_infer=0"], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (command, done.stderr)


# ---- the real engine and a real model ----


@pytest.fixture(scope="module")
def sliced(tmp_path_factory) -> str:
    folder = ROOT / ".cache" / "models"
    return str(smollm2.sliced_path(folder if folder.is_dir() else tmp_path_factory.mktemp("moe")))


def test_a_real_model_answers_and_remembers(tmp_path, sliced):
    command = [sys.executable, "-m", "ktransformers.local_chat", "--gguf_path", sliced]
    questions = "What is the capital of Japan?\nAnd of Italy?\n"
    done = run(["--temperature", "0"], tmp_path, questions, command=command)
    out = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    first, second = STATISTICS.split(out)[:2]
    assert "Tokyo" in first and "Rome" in second
    counts = [int(n) for n in re.findall(r"prompt eval count:    (\d+)", out)]
    assert counts[1] < counts[0]  # the second turn evaluates its own tokens only
    (chosen,) = done.stderr.decode().splitlines()
    for word in ("threads", "mixtral.yaml", "activations auto", "MiB"):
        assert word in chosen


# ---- the conversation itself ----


@pytest.fixture
def talk(model):
    from ktransformers.checkpoint.gguf import open_model
    from tests.support import scripted_engine as engine

    tokenizer = engine.build_tokenizer(open_model(model))

    def start(cache_lens: int = 4096, **options) -> Conversation:
        session = engine.ChatSession(engine.Model(cache_lens), tokenizer)
        return Conversation(session, tokenizer, engine.SamplingOptions(), cache_lens, **options)

    return start


def test_the_second_turn_sends_only_what_is_new(talk):
    chat = talk()
    assert "".join(chat.ask("say hello")) == "hello"
    first = chat.last.prompt_count
    assert "".join(chat.ask("recall")) == "say hello | recall"
    assert chat.last.prompt_count < first + 12  # the closing of the answer and the new message
    assert chat.tokens == len(chat.session.known)


def test_force_think_begins_every_answer(talk):
    chat = talk(force_think=True)
    assert "".join(chat.ask("say x")) == "<think>\nx"
    assert chat.messages[-1]["content"] == "<think>\nx"
    assert chat.tokenizer.decode(chat.session.known).endswith("assistant\n<think>\nx")


def test_characters_split_over_tokens_arrive_whole(talk):
    pieces = list(talk().ask("say 🙂é"))
    assert "".join(pieces) == "🙂é" and "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "is not a saved chat"),
        ('{"format": "ktransformers chat", "version": 9}', "version 9"),
        ('{"format": "ktransformers chat", "version": 1, "messages": [{"role": "x"}]}', "damaged"),
        ('{"format": "ktransformers chat", "version": 1, "messages": 3}', "damaged"),
    ],
)
def test_a_damaged_chat_file_changes_nothing(talk, tmp_path, content, message):
    chat = talk()
    list(chat.ask("say kept"))
    (tmp_path / "chat.json").write_text(content)
    with pytest.raises(UserError, match=message):
        chat.load(str(tmp_path / "chat.json"))
    assert len(chat.messages) == 2


# ---- the keyboard ----


ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")  # what a terminal draws with


class Terminal:
    """The chat on a pseudo terminal."""

    def __init__(self, command: list[str], tmp_path: Path, **extra: str):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(tmp_path, **extra),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C arrives
        )
        os.close(slave)

    def read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            try:
                text = self.text + os.read(self.master, 65536).decode(errors="replace")
                self.text = ESCAPE.sub("", text)
            except OSError:  # the other side is gone
                time.sleep(0.05)

    def expect(self, pattern: str, seconds: float = 40) -> None:
        """Waits for the pattern and forgets what came before its end."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text, re.S)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            self.read()
        self.text = self.text[match.end() :]

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self) -> int:
        end = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running; {self.text!r}"
            self.read()
        os.close(self.master)
        return self.process.returncode


@pytest.fixture
def terminal(tmp_path, model):
    started = []

    def start(command: list[str] | None = None, **extra: str) -> Terminal:
        command = command or [*ENGINE, "--gguf_path", model]
        started.append(Terminal(command, tmp_path, **extra))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.kill(one.process.pid, signal.SIGKILL)
            one.process.wait()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    chat = terminal(KT_TOKEN_SECONDS="0.01")
    chat.expect("Chat:")
    chat.send("count\r")
    chat.expect(r"1 2 3 ")
    chat.send("\x03")
    chat.expect(r"\(stopped\).*eval rate: .*Chat:")
    chat.send("say still here\r")
    chat.expect(r"still here\r?\n.*Chat:")
    chat.send("\x03")  # at the prompt it ends nothing either
    chat.expect(r"Ctrl-D or /exit.*Chat:")
    chat.send("recall\r")
    chat.expect(r"count \| say still here \| recall.*Chat:")
    chat.send("\x04")
    assert chat.wait() == 0
    history = tmp_path / "ktransformers" / "chat_history"
    assert "+say still here" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_real_engine(terminal, sliced):
    command = [sys.executable, "-m", "ktransformers.local_chat", "--gguf_path", sliced]
    chat = terminal([*command, "--temperature", "0"])
    chat.expect("Chat:")
    chat.send("Write a very long story about a river.\r")
    chat.expect(r"river\.\r?\n.{80}")
    chat.send("\x03")
    chat.expect(r"\(stopped\).*eval rate: .*Chat:", 20)
    chat.send("What is the capital of Japan?\r")
    chat.expect(r"Tokyo.*eval rate: .*Chat:", 20)
    chat.send("/exit\r")
    assert chat.wait() == 0


def test_a_block_of_lines_at_the_keyboard(terminal):
    chat = terminal()
    chat.expect("Chat:")
    chat.send('"""say a\r')
    chat.expect(r"\.\.\.")
    chat.send('b"""\r')
    chat.expect(r"a\r?\nb\r?\n.*eval rate.*Chat:")
    chat.send("/exit\r")
    assert chat.wait() == 0
