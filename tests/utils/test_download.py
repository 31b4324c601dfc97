"""Downloads from a server on this machine that breaks off, ignores ranges or sends rubbish when told to."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from equibench.errors import UserError
from equibench.utils.download import Unavailable, download, file_md5

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT, and notes what was asked for and how many bytes were sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges: list[str | None] = []
        self.break_after: list[int] = []  # one number of bytes for each coming reply that is to break off
        self.failures: list[int] = []  # one status for each coming reply that is to fail
        self.knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        content = self.server.content
        if self.server.failures:
            self.send_error(self.server.failures.pop(0))
            return
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.knows_ranges else 0
        if begin >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = begin + self.server.break_after.pop(0) if self.server.break_after else len(content)
        self.wfile.write(content[begin:end])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, target: Path, attempts: int = 4) -> Path:
    return download(server.url, target, md5=MD5, attempts=attempts, pause=0.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.tar.gz"
    assert get(server, target) == target
    assert target.read_bytes() == CONTENT
    assert file_md5(target) == MD5
    assert names(tmp_path) == ["data.tar.gz"]
    get(server, target)
    assert server.ranges == [None], "a file that is there must not be fetched again"


def test_progress_goes_to_stderr(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get(server, tmp_path / "data.tar.gz")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "data.tar.gz" in shown.err


def test_broken_transfer_is_continued_within_one_call(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000, 50_000]
    get(server, tmp_path / "data.tar.gz")
    assert (tmp_path / "data.tar.gz").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_broken_transfer_is_continued_by_a_later_call(server: Server, tmp_path: Path) -> None:
    server.break_after = [70_000]
    with pytest.raises(UserError, match=r"broke off.*70,000 of 512,000") as caught:
        get(server, tmp_path / "data.tar.gz", attempts=1)
    assert not isinstance(caught.value, Unavailable)
    assert names(tmp_path) == ["data.tar.gz.part"]
    get(server, tmp_path / "data.tar.gz")
    assert server.ranges == [None, "bytes=70000-"], "only the rest may be asked for"
    assert (tmp_path / "data.tar.gz").read_bytes() == CONTENT


def test_server_that_ignores_ranges(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT[:1000])
    get(server, tmp_path / "data.tar.gz")
    assert server.ranges == ["bytes=1000-"]
    assert (tmp_path / "data.tar.gz").read_bytes() == CONTENT


def test_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(b"x" * 1000)
    get(server, tmp_path / "data.tar.gz")
    assert server.ranges == ["bytes=1000-", None]
    assert (tmp_path / "data.tar.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_part_as_long_as_the_file_or_longer(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(part)
    get(server, tmp_path / "data.tar.gz")
    assert server.ranges == ([] if part == CONTENT else [f"bytes={len(part)}-", None])
    assert (tmp_path / "data.tar.gz").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=MD5) as caught:
        get(server, tmp_path / "data.tar.gz")
    assert hashlib.md5(server.content).hexdigest() in caught.value.problem
    assert names(tmp_path) == []


def test_damaged_file_in_place_is_named_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz").write_bytes(b"by hand")
    with pytest.raises(UserError, match="data.tar.gz is damaged"):
        get(server, tmp_path / "data.tar.gz")
    assert server.ranges == []


def test_failing_server_is_asked_again_but_not_after_a_refusal(server: Server, tmp_path: Path) -> None:
    server.failures = [503, 500]
    get(server, tmp_path / "data.tar.gz")
    assert len(server.ranges) == 3
    server.failures = [404, 404]
    with pytest.raises(Unavailable, match="404"):
        get(server, tmp_path / "other.tar.gz")
    assert len(server.ranges) == 4


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/data.tar.gz"
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            download(url, tmp_path / "data.tar.gz", md5=MD5)
    assert time.monotonic() - began < 2
    assert capsys.readouterr().err == "", "a bar without a server would only be in the way"
    assert url in caught.value.problem
    assert str(tmp_path / "data.tar.gz") in caught.value.fix
    assert names(tmp_path) == []


def test_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unavailable, match="timed out"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "x", md5=MD5, timeout=0.2)


def test_part_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written") as caught:
        get(server, tmp_path / "missing" / "data.tar.gz")
    assert "EQUIBENCH_CACHE" in caught.value.fix
