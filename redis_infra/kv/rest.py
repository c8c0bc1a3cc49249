"""Upstash's REST protocol without I/O: commands to request bodies, and what comes back to replies.

One command is a JSON array, several are an array of arrays. All words are sent as text, numbers too: a JSON
number beyond 2 ** 53 is another one in many a parser. Bytes that are no UTF-8 cannot be in JSON: such a
command goes as a script that gets them in base64, with the same answer and the same errors alone, in a
pipeline and in a transaction. (The form with a raw body takes one value, alone, and has the key in the URL,
which ends in access logs.) Strings come back in base64, so that they are the bytes that they were.

Knows nothing of sockets, clients, retries or breakers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis_infra.exceptions import (
    StoreAuthError,
    StoreError,
    StoreIndeterminate,
    StoreQuotaExceeded,
    StoreReadOnly,
    StoreRejected,
    StoreTypeError,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv.commands import Command, Word
from redis_infra.kv.refusals import refusal

__all__ = ["SYNC_TOKEN", "Answer", "Request", "Unclear", "headers", "one", "several"]

SYNC_TOKEN: Final = "Upstash-Sync-Token"
"""The header that says what a client has seen already: a replica that has not waits, or asks the primary."""

# KEYS the command's keys; ARGV the places of binary words as "3:10 5:2" (place:size), then all words, the
# binary ones in base64. 0.12 microseconds a byte, of the server; string.gsub takes up to twice that. MSET in
# parts, since unpack() takes some 8,000 at most; the script is atomic all the same.
_DECODING: Final = """
local at, alphabet = {}, 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
local byte, char, sub = string.byte, string.char, string.sub
for i = 1, 64 do at[byte(alphabet, i)] = i - 1 end
at[61] = 0
local function decoded(text, size)
  local parts = {}
  for i = 1, #text, 8 do
    local a, b, c, d, e, f, g, h = byte(text, i, i + 7)
    a, b, c, d, e, f, g, h = at[a], at[b], at[c], at[d], at[e or 61], at[f or 61], at[g or 61], at[h or 61]
    local bl, cl, fl, gl = b % 16, c % 4, f % 16, g % 4
    parts[#parts + 1] = char(a * 4 + (b - bl) / 16, bl * 16 + (c - cl) / 4, cl * 64 + d,
      e * 4 + (f - fl) / 16, fl * 16 + (g - gl) / 4, gl * 64 + h)
  end
  return sub(table.concat(parts), 1, size)
end
local words = {}
for i = 2, #ARGV do words[i - 1] = ARGV[i] end
for place, size in string.gmatch(ARGV[1], '(%d+):(%d+)') do
  place = tonumber(place)
  words[place] = decoded(words[place], tonumber(size))
end
if words[1] ~= 'MSET' then return redis.pcall(unpack(words)) end
local reply
for i = 2, #words, 1000 do
  reply = redis.pcall('MSET', unpack(words, i, math.min(i + 999, #words)))
  if type(reply) == 'table' and reply.err then return reply end
end
return reply
"""
_REDIRECTS: Final = range(300, 400)
_GATEWAY: Final = range(500, 600)


class Unclear(Exception):
    """What came back says nothing of whether the commands were executed; the text says what it is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered. ``headers`` are asked for by any case, as httpx has them."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """Commands as one request."""

    commands: Sequence[Command[Any]]
    path: str
    """After the URL of the API: nothing, ``/pipeline`` or ``/multi-exec``."""
    body: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """What errors call it."""
        return {"": self.commands[0].name, "/pipeline": "pipeline"}.get(self.path, "transaction")

    @property
    def key(self) -> str:
        return self.commands[0].key

    @property
    def writes(self) -> bool:
        return any(command.writes for command in self.commands)

    @property
    def repeatable(self) -> bool:
        return all(command.repeatable for command in self.commands)

    def replies(self, answer: Answer) -> list[Any]:
        """Return a reply for each command, as Redis gives it, or the error by which it was refused.

        Raises:
            StoreError: all of it was refused; nothing was executed.
            Unclear: it is no answer of the API.
        """
        said = _json(answer)
        if answer.status not in (200, 400) or (answer.status == 400 and not _is_error(said)):
            raise self._refused(answer, said)
        if not self.path:
            return [self._reply(said, self.commands[0], None)]
        if _is_error(said):
            raise self._refused_whole(said["error"])
        if not isinstance(said, list) or len(said) != len(self.commands):
            raise Unclear("it answered something else than a reply for each command")
        pairs = enumerate(zip(said, self.commands, strict=True))
        return [self._reply(item, command, place) for place, (item, command) in pairs]

    def unavailable(self, reason: str) -> StoreError:
        """Return the error for what was not executed."""
        return StoreUnavailable(self.name, self.key, reason=reason)

    def unanswered(self, reason: str) -> StoreError:
        """Return the error for what may have been executed."""
        if not self.writes:
            return self.unavailable(reason)
        return StoreIndeterminate(self.name, self.key, reason)

    def _reply(self, item: Any, command: Command[Any], place: int | None) -> Any:
        if _is_error(item):
            return _of_reader(refusal(item["error"], command, place), writes=command.writes)
        if not isinstance(item, dict) or "result" not in item:
            raise Unclear("it answered neither a result nor an error")
        return _decoded(item["result"])

    def _refused(self, answer: Answer, said: Any) -> StoreError:
        """Return the error for a status that no command has."""
        text = said["error"] if _is_error(said) else ""
        if answer.status == 429:
            reason = _short(text) or "too many requests (HTTP 429)"
            return StoreQuotaExceeded(self.name, self.key, reason, _retry_after(answer.headers))
        if answer.status in (401, 403):
            reason = f"{_short(text) or 'not authorized'} (HTTP {answer.status}); check the token"
            return StoreAuthError(self.name, self.key, reason)
        if answer.status in _REDIRECTS:
            reason = f"the URL leads elsewhere (HTTP {answer.status}), and a token is not sent after it"
            return StoreRejected(self.name, self.key, f"{reason}; set the URL that it leads to")
        reason = _short(text) or "this is no REST API of Upstash's; check the URL"
        return StoreRejected(self.name, self.key, f"{reason} (HTTP {answer.status})")

    def _refused_whole(self, text: str) -> StoreError:
        error = _of_reader(refusal(text, self.name), writes=self.writes)
        if self.path == "/multi-exec" and type(error) in (StoreRejected, StoreTypeError):
            return TransactionDiscarded(self.name, self.key, error.reason)
        return error


def _of_reader(error: StoreError, *, writes: bool) -> StoreError:
    """Return the error as it is; or, where a token was not let write, the one that says so."""
    # Tokens may everything or read, unless somebody made others: the API tells them apart by nothing else.
    if writes and isinstance(error, StoreAuthError) and error.reason.startswith("NOPERM"):
        return StoreReadOnly(error.command, error.key, error.reason, error.index)
    return error


def one(command: Command[Any]) -> Request:
    """Return the request of one command."""
    return Request((command,), "", _body(_words(command)))


def several(commands: Sequence[Command[Any]], *, atomic: bool = False) -> Request:
    """Return the request of commands in their order; ``atomic``: nobody comes between."""
    path = "/multi-exec" if atomic else "/pipeline"
    return Request(commands, path, _body([_words(command) for command in commands]))


def headers(token: str) -> dict[str, str]:
    """Return what leads every request."""
    return {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",  # a few bytes that unpack to gigabytes are not asked for
        "Upstash-Encoding": "base64",
        "User-Agent": "redis-infra",
    }


def _body(words: list[Any]) -> bytes:
    return json.dumps(words, ensure_ascii=False, separators=(",", ":")).encode()


def _words(command: Command[Any]) -> list[str]:
    words = command.words
    texts = [_text(word) for word in words]
    binary = [place for place, text in enumerate(texts) if text is None]
    if not binary:
        return [text for text in texts if text is not None]
    sizes = " ".join(f"{place + 1}:{_size(words[place])}" for place in binary)
    sent = [_base64(words[place]) if text is None else text for place, text in enumerate(texts)]
    return ["EVAL", _DECODING, str(len(command.keys)), *command.keys, sizes, *sent]


def _text(word: Word) -> str | None:
    """Return a word as text; None if it is none."""
    if not isinstance(word, bytes):
        return str(word)
    try:
        return word.decode()
    except UnicodeDecodeError:
        return None


def _size(word: Word) -> int:
    assert isinstance(word, bytes)
    return len(word)


def _base64(word: Word) -> str:
    assert isinstance(word, bytes)
    return base64.b64encode(word).decode()


def _decoded(result: Any) -> Any:
    """Return a result as Redis' reply. ``OK`` may come as it is: as base64 it would have padding."""
    if result is None or (isinstance(result, int) and not isinstance(result, bool)):
        return result
    if isinstance(result, list):
        return [_decoded(each) for each in result]
    if not isinstance(result, str):
        raise Unclear(f"it answered a {type(result).__name__}, which Redis does not have")
    if result == "OK":
        return b"OK"
    try:
        return base64.b64decode(result, validate=True)
    except (binascii.Error, ValueError):
        raise Unclear("it answered something that is not base64") from None


def _json(answer: Answer) -> Any:
    """Return what a body says; None where another status than 200 explains itself without.

    Raises:
        Unclear: a gateway speaks, or half an answer came.
    """
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    if answer.status in _GATEWAY:
        text = f": {_short(said['error'])}" if _is_error(said) else ""
        raise Unclear(f"HTTP {answer.status}{text}")
    if said is None and answer.status in (200, 400):
        raise Unclear(f"HTTP {answer.status} without an answer in JSON")
    return said


def _is_error(said: Any) -> bool:
    return isinstance(said, dict) and isinstance(said.get("error"), str) and bool(said["error"])


def _short(text: str) -> str:
    return " ".join(text.split())[:200]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait; a date says nothing to who does not know whose clock is right."""
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.isdecimal() and text.isascii() else None
