"""One file of a Hugging Face repository into the Hub's own cache, resumable and verified.

`hf_hub_download` of huggingface_hub 2 writes to a file named at random and throws it away when it
is interrupted, so a download of 200 GB starts over. Here the bytes go to `blobs/<etag>.kt-partial`,
which the next attempt continues; when complete (and, where the Hub tells the SHA-256, equal to it)
it becomes the blob the Hub's library then finds, and every other tool with it.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ktransformers.errors import UserError

MAX_FAILURES = 5  # in a row without a byte received
SPARE_BYTES = 1 << 28  # disk space left free


@dataclass(frozen=True)
class RemoteFile:
    """What a HEAD request tells."""

    url: str
    etag: str
    nbytes: int


def describe(repo: str, filename: str) -> RemoteFile:
    """Raises: the Hub's errors; UserError for an answer that cannot be used."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, filename)
    found = get_hf_file_metadata(url)
    # The tag names a file in the cache, so it must be a plain word.
    if found.etag is None or found.size is None or not re.fullmatch(r"[\w-]{1,128}", found.etag):
        raise UserError(f"{url}: the server does not tell the file's size and tag; try again later")
    # Not found.location: where it redirects to is signed for an hour, less than a download takes.
    return RemoteFile(url, found.etag, found.size)


def blob_path(repo: str, remote: RemoteFile) -> Path:
    from huggingface_hub import constants

    folder = "models--" + repo.replace("/", "--")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / remote.etag


def missing_bytes(blob: Path, remote: RemoteFile) -> int:
    """What is still to be fetched of it."""
    if blob.exists():
        return 0
    partial = _partial(blob)
    return max(remote.nbytes - (partial.stat().st_size if partial.exists() else 0), 0)


def check_space(folder: Path, needed: int) -> None:
    """Raises: UserError with both numbers if `needed` bytes and some spare do not fit."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise UserError(
            f"{folder}: the download needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def fetch(blob: Path, remote: RemoteFile, title: str) -> None:
    """Completes `blob`, continuing what an earlier attempt left.

    Raises: UserError when the disk is full, another process is at it, or the content is not what
    the Hub says it should be; the Hub's or the connection's error after MAX_FAILURES in a row.
    """
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(blob)
    try:
        with partial.open("ab") as out:
            _lock(out, title)
            if out.tell() > remote.nbytes:
                _restart(out)
            _receive(out, remote, title)
            out.flush()
            os.fsync(out.fileno())
            _verify(partial, remote, title)
            partial.rename(blob)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{partial}: the disk is full; make room and start again, it will be continued"
            ) from error
        raise


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + ".kt-partial")


def _restart(out) -> None:
    out.seek(0)
    out.truncate()


def _lock(out, title: str) -> None:
    import fcntl

    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return  # a file system without locks: the checksum will tell
        raise UserError(f"{title}: another process is downloading it; wait for it") from error


def _receive(out, remote: RemoteFile, title: str) -> None:
    """Appends the missing bytes, reconnecting as long as there is progress."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import tqdm

    failures = 0
    bar = tqdm(
        total=remote.nbytes, initial=out.tell(), unit="B", unit_scale=True, desc=title, disable=None
    )
    with bar:
        while out.tell() < remote.nbytes:
            before = out.tell()
            try:
                _receive_once(out, remote, bar)
            except HfHubHTTPError as error:
                status = error.response.status_code if error.response is not None else 500
                if status < 500 and status not in (408, 429):
                    raise
                last = error
            except HTTPError as error:
                last = error
            else:
                last = ConnectionError(f"{title}: the server closed the connection early")
            if out.tell() >= remote.nbytes:
                break
            failures = 0 if out.tell() > before else failures + 1
            if failures >= MAX_FAILURES:
                raise last
            time.sleep(min(2**failures, 30) / 4)


def _receive_once(out, remote: RemoteFile, bar) -> None:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    start = out.tell()
    if start:
        headers["Range"] = f"bytes={start}-"
    # A redirect to a storage host drops the user's token (a test sees that).
    with get_session().stream(
        "GET", remote.url, headers=headers, follow_redirects=True,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    ) as response:  # fmt: skip
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # the server knows no ranges: from the beginning
            _restart(out)
            bar.update(-start)
        for chunk in response.iter_bytes():  # as it arrives: a broken connection loses nothing
            chunk = chunk[: remote.nbytes - out.tell()]  # a server may not fill the disk
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() >= remote.nbytes:
                return


def _verify(partial: Path, remote: RemoteFile, title: str) -> None:
    """The Hub's tag of a large file is its SHA-256. Raises: UserError, and drops the file."""
    if not re.fullmatch(r"[0-9a-f]{64}", remote.etag):
        return
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != remote.etag:
        partial.unlink()
        raise UserError(f"{title}: arrived damaged (its SHA-256 differs); start the download again")
