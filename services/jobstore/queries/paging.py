"""Pages by key: the next page begins after the last item of this one, whatever came or went meanwhile.

A token is the key of that item, sealed with the call and all its arguments but the page's size and token: used with
others it is PAGE_TOKEN_INVALID. The seal is against mistakes, not against malice: a forged token reads nothing that
the call would not show anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from chassis.errors import WaybillError, invalid_field
from jobstore.messages import EPOCH

DEFAULT_SIZE: Final = 50
LARGEST_SIZE: Final = 1_000
LARGEST_ANSWER: Final = 3 << 20
"""Bytes of a page's items; a message of more than 4 MiB would not be taken."""
_SEAL_BYTES: Final = 9

M = TypeVar("M", bound=Message)
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Page(Generic[M]):
    """Some items, and where the next ones are; the token is empty on the last page."""

    items: list[M]
    next_page_token: str


class Paging:
    """One page, as asked for."""

    def __init__(self, request: Message, *kinds: type[object]) -> None:
        """Reads size and token of a request whose items have keys of these kinds: int, str, or list (of int).

        Raises WaybillError PAGE_TOKEN_INVALID, or REQUEST_INVALID for a negative size.
        """
        self._arguments = _arguments(request)
        self.size = self.size_of(request)
        self.after = self._opened(request.page_token, kinds)  # type: ignore[attr-defined]
        """The key of the last item already given; None on the first page."""

    @staticmethod
    def size_of(request: Message) -> int:
        """Returns how many items a request asks for; raises WaybillError REQUEST_INVALID for a negative number."""
        asked: int = request.page_size  # type: ignore[attr-defined]
        if asked < 0:
            raise invalid_field("page_size", "must not be negative")
        return min(asked, LARGEST_SIZE) or DEFAULT_SIZE

    def page(self, items: Sequence[M], keys: Sequence[Key]) -> Page[M]:
        """Makes a page of items of which one more than its size was asked for; fewer if they are large."""
        shown = _that_fit(items[: self.size])
        more = len(items) > len(shown)
        return Page(shown, self._sealed(keys[len(shown) - 1]) if more else "")

    def _sealed(self, key: Key) -> str:
        content = json.dumps(key, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._seal(content) + content).decode().rstrip("=")

    def _opened(self, token: str, kinds: Sequence[type[object]]) -> Key | None:
        if not token:
            return None
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _not_ours() from None
        seal, content = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
        if seal != self._seal(content):
            raise _not_ours()
        key = json.loads(content)
        if [type(part) for part in key] != list(kinds):
            raise _not_ours()
        return tuple(key)

    def _seal(self, content: bytes) -> bytes:
        return hashlib.sha256(self._arguments + content).digest()[:_SEAL_BYTES]


def _that_fit(items: Sequence[M]) -> list[M]:
    """As many as fit into one message, but one at least."""
    shown: list[M] = []
    room = LARGEST_ANSWER
    for item in items:
        room -= item.ByteSize()
        if room < 0 and shown:
            break
        shown.append(item)
    return shown


def _arguments(request: Message) -> bytes:
    """The call and what it was asked, without which page."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("page_size")
    copy.ClearField("page_token")
    return request.DESCRIPTOR.full_name.encode() + b"\0" + copy.SerializeToString(deterministic=True) + b"\0"


def _not_ours() -> WaybillError:
    return invalid_field("page_token", "must come from this call with the same arguments", reason="PAGE_TOKEN_INVALID")


def microseconds(time: datetime) -> int:
    """A time as a part of a key: since 1970, exact."""
    return (time - EPOCH) // timedelta(microseconds=1)


def time_of(microseconds: int) -> datetime:
    """A part of a key as a time."""
    return EPOCH + timedelta(microseconds=microseconds)
