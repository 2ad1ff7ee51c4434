"""Models by name: `user/repo[:quant]` becomes a local GGUF, downloaded if need be.

Nothing but GGUF files (and, for `--model_path`, configuration and tokenizer files read as data) is
ever fetched. KT_OFFLINE=1 or HF_HUB_OFFLINE=1: only what is in the Hub's cache, no connection.
Imports huggingface_hub only when a name is resolved; never torch.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktransformers.checkpoint import download
from ktransformers.checkpoint.gguf import group_models, some
from ktransformers.errors import UserError

NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(:(?P<quant>[\w.-]{1,64}))?",
    re.ASCII,
)
# What --model_path may bring: data only, and small.
CONFIG_PATTERNS = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja", "*.tiktoken",
    "tiktoken.model",
]  # fmt: skip


def is_offline() -> bool:
    names = ("KT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(n, "").strip().lower() in ("1", "true", "yes", "on") for n in names)


def resolve_model(name: str | Path, say: Callable[[str], None] | None = None) -> Path:
    """A path for `open_model`: what lies there already, or the download of `user/repo[:quant]`.

    say: takes progress lines; standard error by default. Raises: UserError.
    """
    match = _as_repo(name)
    if match is None:
        return Path(name)
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    repo, quant = match["repo"], match["quant"]
    if is_offline():
        return _from_cache(repo, quant, "offline")
    return _guarded(repo, lambda: _from_hub(repo, quant, say), lambda: _from_cache(repo, quant, ""))


def resolve_config(name: str | Path) -> Path:
    """A folder with configuration and tokenizer files: a local one, or those of `user/repo`."""
    match = _as_repo(name)
    if match is None:
        return Path(name)
    from huggingface_hub import snapshot_download

    repo = match["repo"]
    if match["quant"]:
        raise UserError(f"{name}: a quant makes no sense for --model_path; give {repo}")

    def load(local: bool) -> Path:
        return Path(snapshot_download(repo, allow_patterns=CONFIG_PATTERNS, local_files_only=local))

    if is_offline():
        return _guarded(repo, lambda: load(local=True), None)
    return _guarded(repo, lambda: load(local=False), lambda: load(local=True))


def _as_repo(name: str | Path) -> re.Match | None:
    text = str(name)
    if os.path.lexists(os.path.expanduser(text)):
        return None  # a local folder wins over a name that looks the same
    match = NAME.fullmatch(text)
    return None if match is None or text.lower().endswith(".gguf") else match


# ---- choosing ----


@dataclass(frozen=True)
class Choice:
    """One model of a repository: its files in order, and what tells it from its siblings."""

    label: str
    files: list[str]
    nbytes: int | None = None

    def __str__(self) -> str:
        return self.label + (f" ({self.nbytes / 1e9:.1f} GB)" if self.nbytes else "")


def choices(files: dict[str, int | None]) -> list[Choice]:
    """The models among a repository's files (name -> bytes or None), labelled by quant.

    The label is the part of the name after what all names share, cut back to a hyphen or dot.
    """
    groups = group_models(files)
    paths = [re.sub(r"\.gguf$|-of-\d{5}$", "", key, flags=re.I) for key in groups]
    stems = [path.rpartition("/")[2] for path in paths]
    if len(set(stems)) < len(stems):
        stems = paths  # told apart by their folders
    shared = os.path.commonprefix(stems) if len(stems) > 1 else ""
    cut = max(shared.rfind("-"), shared.rfind(".")) + 1
    found = []
    for stem, names in zip(stems, groups.values(), strict=True):
        sizes = [files[name] for name in names]
        found.append(Choice(stem[cut:] or stem, names, None if None in sizes else sum(sizes)))
    return sorted(found, key=lambda c: (c.nbytes or 0, c.label))


def choose(where: str, found: list[Choice], quant: str | None) -> Choice:
    """The one model that is meant. Raises: UserError listing what there is."""
    if not found:
        raise UserError(f"{where}: holds no .gguf file; choose a repository with GGUF in its name")
    listing = some([str(c) for c in found], most=40)
    if quant is None:
        if len(found) == 1:
            return found[0]
        raise UserError(f"{where}: holds {len(found)} models, add one as {where}:QUANT: {listing}")
    wanted = re.escape(quant)
    # From strict to lax: the label itself, a whole word of the name, any part of it.
    for pattern in (None, rf"(?<![A-Za-z0-9]){wanted}(?![A-Za-z0-9_])", wanted):
        fits = [
            c
            for c in found
            if (c.label.lower() == quant.lower() if pattern is None
                else re.search(pattern, c.files[0], re.I))
        ]  # fmt: skip
        if len(fits) == 1:
            return fits[0]
        if fits:
            shown = some([str(c) for c in fits], most=40)
            raise UserError(f"{where}: '{quant}' could be any of {shown}; give more of the name")
    raise UserError(f"{where}: has no '{quant}'; it has {listing}")


# ---- the two places ----


def _from_hub(repo: str, quant: str | None, say: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download

    info = HfApi().model_info(repo, files_metadata=True)
    sizes = {
        s.rfilename: s.size
        for s in info.siblings or []
        if not (s.rfilename.startswith("/") or {"..", ""} & set(s.rfilename.split("/")))
    }
    choice = choose(repo, choices(sizes), quant)
    remotes = [download.describe(repo, name) for name in choice.files]
    blobs = [download.blob_path(repo, remote) for remote in remotes]
    missing = sum(map(download.missing_bytes, blobs, remotes))
    if missing:
        total = sum(remote.nbytes for remote in remotes)
        download.check_space(Path(constants.HF_HUB_CACHE), missing)
        continued = f", {(total - missing) / 1e9:.2f} GB of it already here" * (missing < total)
        say(f"downloading {repo}:{choice.label}, {total / 1e9:.2f} GB{continued}")
    places = []
    for name, blob, remote in zip(choice.files, blobs, remotes, strict=True):
        download.fetch(blob, remote, f"{repo}/{name}")
        places.append(Path(hf_hub_download(repo, name)))  # finds the blob, adds name and revision
    return places[0]


def _from_cache(repo: str, quant: str | None, why: str) -> Path:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    try:
        commit = (folder / "refs" / "main").read_text().strip()
        snapshot = folder / "snapshots" / commit
        names = [str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file()]
    except OSError:
        names = []
    found = choices({n: (snapshot / n).stat().st_size for n in names})
    if not found:
        raise UserError(
            f"{repo}: nothing of it has been downloaded{' and this is offline' if why else ''}; "
            "unset KT_OFFLINE and HF_HUB_OFFLINE, or give the path of a local file"
        )
    return snapshot / choose(f"{repo} (downloaded)", found, quant).files[0]


def _guarded(repo: str, work: Callable[[], Path], otherwise: Callable[[], Path] | None) -> Path:
    """work(), with the Hub's errors as UserErrors; without a connection, what is in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    host = constants.ENDPOINT
    try:
        return work()
    except GatedRepoError as error:
        raise UserError(
            f"{repo}: its owner asks you to accept terms; do so at {host}/{repo}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: no such file or folder here, and no such repository at {host} (or a private "
            "one: log in with `hf auth login` or set HF_TOKEN); check the name"
        ) from error
    except HFValidationError as error:
        raise UserError(f"{repo}: is not a repository's name; write user/repo[:quant]") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo}: nothing of it has been downloaded and {host} cannot be asked; "
            "go online (unset KT_OFFLINE and HF_HUB_OFFLINE), or give a local path"
        ) from error
    except (HTTPError, ConnectionError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status is None or status >= 500:
            try:
                if otherwise is not None:
                    return otherwise()
            except UserError:
                pass
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repo}: {host} failed ({reason}); try again, what has arrived is kept"
        ) from error
    except OSError as error:
        raise UserError(f"{repo}: {error.filename or ''} {error.strerror or error}") from error
