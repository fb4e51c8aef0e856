"""A client that says what no gRPC client would: HTTP/2 frames as the test writes them (RFC 9113, RFC 7541).

Headers go out as literals that nothing checks. Of what comes back only the frames' types and flags are looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

Header = tuple[bytes, bytes]

DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
CONTINUATION: Final = 9

_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_LARGEST_FRAME: Final = 16_384
_EMPTY_MESSAGE: Final = b"\0\0\0\0\0"


class RawClient:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = -1

    async def call(self, method: bytes, *headers: Header) -> bool:
        """Makes a call with an empty request and these headers more. Returns whether the server went on talking to us:
        False if it closed the connection, whatever it said of the call."""
        self._stream += 2
        block = _encode((*_request(method), *headers))
        pieces = [block[at : at + _LARGEST_FRAME] for at in range(0, len(block), _LARGEST_FRAME)]
        for index, piece in enumerate(pieces):
            last = _END_HEADERS if index == len(pieces) - 1 else 0
            self._send(CONTINUATION if index else HEADERS, last, self._stream, piece)
        self._send(DATA, _END_STREAM, self._stream, _EMPTY_MESSAGE)
        return await self._until_over()

    async def _until_over(self) -> bool:
        while True:
            try:
                kind, flags, stream, body = await self._frame()
            except (asyncio.IncompleteReadError, ConnectionError):
                return False
            if kind == SETTINGS and not flags & _ACK:
                self._send(SETTINGS, _ACK, 0, b"")
            elif kind == PING and not flags & _ACK:
                self._send(PING, _ACK, 0, body)
            elif kind == GOAWAY:
                return False
            elif stream == self._stream and (kind == RST_STREAM or (flags & _END_STREAM and kind in (DATA, HEADERS))):
                return True

    async def _frame(self) -> tuple[int, int, int, bytes]:
        head = await self._reader.readexactly(9)
        body = await self._reader.readexactly(int.from_bytes(head[:3]))
        return head[3], head[4], int.from_bytes(head[5:]) & 0x7FFF_FFFF, body

    def _send(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        self._writer.write(len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body)


@asynccontextmanager
async def raw_client(address: str) -> AsyncIterator[RawClient]:
    """Connects to a server."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    client = RawClient(reader, writer)
    client._send(SETTINGS, 0, 0, b"")
    try:
        yield client
    finally:
        writer.close()


def _request(method: bytes) -> Sequence[Header]:
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method),
        (b":authority", b"depot"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )


def _encode(headers: Sequence[Header]) -> bytes:
    """Literal header fields without indexing, without Huffman coding."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(text: bytes) -> bytes:
    rest = len(text) - 127
    if rest < 0:
        return bytes((len(text),)) + text
    length = b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + text
