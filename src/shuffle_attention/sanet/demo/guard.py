"""Middleware between the network and Gradio: only the page's requests, from the page itself, get through."""

import asyncio
import ipaddress
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from email.message import Message as Header
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...errors import InputError
from .uploads import KEPT, MAX_BYTES, Uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Gradio's pages have inline scripts and styles; the page's images are data URIs.
_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; object-src 'none'; "
    b"frame-ancestors 'self'"
)
_FILE = "/gradio_api/file="
_UPLOAD, _JOIN, _DATA, _CANCEL = (f"/gradio_api/{name}" for name in ("upload", "queue/join", "queue/data", "cancel"))
# The routes that the page uses. Gradio has many more, some of which load addresses or never end.
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/(assets|static)/.+"
    rf"|/gradio_api/(startup-events|upload_progress|heartbeat/\w+|queue/data)|{_FILE}.+"
)
_MAX_BODY = 2**16  # bytes of a request other than an upload; those of the page have a few thousand
_MAX_UPLOAD = MAX_BYTES + 2**14  # a file with its multipart headers
_MAX_DISCARDED = 10 * MAX_BYTES
_MAX_PATH = 4096  # characters, the limit of Linux


class Refusal(Exception):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Hosts:
    """The names under which the page is served.

    A site that lets its own name point to this machine (DNS rebinding) sends that name, and is refused.

    Args:
        listening: Address or name that the server listens on.
        allowed: Further names, such as that of a reverse proxy.

    Raises:
        InputError: If one of these is not a name.
    """

    def __init__(self, listening: str, allowed: Collection[str] = ()):
        self.everywhere = listening == "0.0.0.0"
        self.exposed = bool(allowed) or not _is_loopback(listening)  # to other machines
        self.allowed = {_name(name.lower()) for name in allowed}
        if "" in self.allowed:
            raise InputError(f"--allow-host takes names such as demo.example.org, got {', '.join(allowed)}")
        self.names = {"localhost", listening.lower(), *self.allowed}
        if self.everywhere:
            self.names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    def require_own(self, scope: Message) -> None:
        """Raise Refusal unless the request names this server, and comes from its page or from no page."""
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host, origin, site = (headers.get(name, "") for name in (b"host", b"origin", b"sec-fetch-site"))
        if not self._has(host):
            raise Refusal(403, f"this page is not served as {host[:99]!r}; --allow-host NAME allows one more name")
        # A link on another site may lead to the page.
        follows_link = scope["path"] == "/" and headers.get(b"sec-fetch-mode") == "navigate"
        foreign = site in ("cross-site", "same-site") and not follows_link
        if origin:
            foreign |= urlsplit(origin).netloc != host and _name(urlsplit(origin).netloc) not in self.allowed
        if foreign:
            raise Refusal(403, "this page takes no requests from other sites")

    def _has(self, host: str) -> bool:
        name = _name(host)
        return name in self.names or _is_loopback(name) or (self.everywhere and _address(name) is not None)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" if address is None else address.is_loopback


def _name(host: str) -> str:
    """Return a host without its port; empty if it is malformed."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^:@/\[\]\s]+))(?::\d+)?", host)
    return (match[1] or match[2]) if match else ""


class Guard:
    """An application that refuses whatever the page does not send, and never ends in a traceback.

    Every response tells browsers to load from this server only.

    Args:
        app: The application to guard.
        hosts: Names that it is served under.
        uploads: Folder of the uploads.
        accepts: Whether the JSON of an event is one that the page sends.
    """

    def __init__(self, app: Any, hosts: Hosts, uploads: Uploads, accepts: Callable[[dict[str, Any]], bool]):
        self.app, self.hosts, self.uploads, self.accepts = app, hosts, uploads, accepts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = failed = False
        begin: Message | None = None

        async def with_policy(message: Message) -> None:
            nonlocal started, failed, begin
            if message["type"] == "http.response.start":
                failed = message["status"] == 500
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _POLICY),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if scope["path"] == _DATA:  # only its first event shows whether the visitor is known
                    begin = message
                    return
            if not failed:
                started = True
                if begin is not None:
                    await send(begin)
                    begin = None
                await send(message)

        try:
            self.hosts.require_own(scope)
            # Gradio would build the page's addresses from them.
            forged = (b"x-forwarded-host", b"x-gradio-server")
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in forged]
            async with self._checked(scope, receive) as checked:
                await self.app(scope, checked, with_policy)
            refusal = Refusal(400, "this request cannot be processed")
        except Refusal as error:
            refusal = error
        except Exception:  # Gradio's, about a request that the page would not send
            refusal = Refusal(400, "this request cannot be processed")
        if not started:
            failed, begin = False, None
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await with_policy({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await with_policy({"type": "http.response.body", "body": str(refusal).encode(errors="replace")})

    def _checked(self, scope: Message, receive: Receive) -> AbstractAsyncContextManager[Receive]:
        """Return ``receive`` for the application after what can be checked has been; raise Refusal otherwise."""
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and _READ.fullmatch(path):
            if path.startswith(_FILE) and not self._is_upload(path.removeprefix(_FILE)):
                raise Refusal(403, "this page hands out no files")
            return nullcontext(receive)
        if method == "POST" and path == _UPLOAD:
            return self._one_file(dict(scope["headers"]), receive)
        if method == "POST" and path in (_JOIN, _CANCEL):
            return self._event(receive, path == _JOIN)
        raise Refusal(404, "this page has no such address")

    @asynccontextmanager
    async def _event(self, receive: Receive, join: bool) -> AsyncIterator[Receive]:
        body, more = b"", True
        while more and len(body) <= _MAX_BODY:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > _MAX_BODY:
            raise Refusal(413, f"a request may have {_MAX_BODY:,} bytes")
        try:
            event = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "the request is not JSON") from error
        if not self._has_only_uploads(event):
            raise Refusal(403, "this page reads uploads, and nothing from elsewhere")
        if not isinstance(event, dict) or (join and not self.accepts(event)):
            raise Refusal(400, "the page sends no such event")
        read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return read.pop() if read else await receive()

        yield again

    @asynccontextmanager
    async def _one_file(self, headers: dict[bytes, bytes], receive: Receive) -> AsyncIterator[Receive]:
        length = headers.get(b"content-length", b"")
        kind = Header()
        kind["content-type"] = headers.get(b"content-type", b"").decode("latin-1")
        boundary = kind.get_boundary("").encode("latin-1", "replace")
        if not length.isdigit():
            raise Refusal(411, "an upload must tell its length")
        if int(length) > _MAX_UPLOAD:
            # A browser that is still sending does not read the answer.
            while int(length) <= _MAX_DISCARDED and (await receive()).get("more_body"):
                pass
            raise Refusal(413, f"a file may have {MAX_BYTES:,} bytes")
        if not boundary or kind.get_content_type() != "multipart/form-data":
            raise Refusal(400, "an upload must be a form with one file")
        tail, parts, deadline = b"", 0, time.monotonic() + KEPT

        async def counting() -> Message:
            nonlocal tail, parts
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except asyncio.TimeoutError as error:
                raise Refusal(408, f"an upload may take {KEPT} seconds") from error
            body = message.get("body", b"")
            if not has_room(len(body)):
                raise Refusal(503, "too many images are on the way; try again in a minute")
            window = tail + body
            parts += window.count(b"--" + boundary)
            # One boundary stands before the file, and one after it.
            if parts > 2:
                raise Refusal(413, "a request may have one file")
            if b'filename=""' in window[:1024] or (parts < 2 and not message.get("more_body")):
                raise Refusal(400, "an upload must be a form with one file that has a name")
            tail = window[-len(boundary) - 1 :]
            return message

        with self.uploads.arriving() as has_room:
            yield counting

    def _has_only_uploads(self, value: Any) -> bool:
        """Return whether every file in a JSON value is an upload."""
        if isinstance(value, list):
            return all(map(self._has_only_uploads, value))
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        if isinstance(path, str) and not self._is_upload(path):
            return False
        return all(map(self._has_only_uploads, value.values()))

    def _is_upload(self, path: str) -> bool:
        # By its characters, since visitors cannot create links. An impossible path would block Gradio for everyone.
        possible = len(path) <= _MAX_PATH and "\0" not in path
        return possible and Path(os.path.abspath(path)).is_relative_to(self.uploads.folder)
