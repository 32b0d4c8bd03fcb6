"""A multipart body as it comes: short fields in memory, the one file on the disk, in constant memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from local_runner.mock_server.errors import ServiceError
from local_runner.mock_server.storage.upload import Upload

FORM_ROOM = 64 * 1024
"""Bytes of a body beside its file: boundaries, headers and fields."""
_BATCH = 1024 * 1024
"""Bytes that are worth a hop to a thread."""


class Form:
    """Takes a body in, piece after piece.

    Args:
        content_type: the request's, with its boundary.
        begin: opens room for the file.
        most: bytes that the file may have.

    Raises:
        ServiceError: it is no multipart body.
    """

    def __init__(self, content_type: str, begin: Callable[[], Upload], *, most: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise _bad("The body must be multipart/form-data with a boundary.")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.file_field = ""
        self.file: Upload | None = None
        self._begin = begin
        self._most = most
        self._room = FORM_ROOM
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = b"", b""
        self._name, self._is_file, self._ended = "", False, False
        self._parts: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _bad(f"The body's boundary cannot be used: {error}") from error

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ServiceError: it is no part of a form, or the file is too long.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _bad(f"The multipart body cannot be read: {error}") from error
        if self.file is not None and self._parts:
            parts, self._parts = self._parts, []
            self.file.write(parts)
            if self.file.size > self._most:
                raise ServiceError(
                    413,
                    "file_too_large",
                    f"The file is larger than {self._most:,} bytes.",
                    param=self.file_field,
                )

    def end(self) -> None:
        """Nothing comes any more.

        Raises:
            ServiceError: something is missing.
        """
        if not self._ended:
            raise _bad("The multipart body ends in the middle.")

    def abandon(self) -> None:
        """Forget the file, unless somebody has kept it."""
        if self.file is not None:
            self.file.abandon()

    def _begin_part(self) -> None:
        self._headers = {}

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options
        if not self._is_file:
            self.fields[self._name] = ""
        elif self.file is not None:
            raise _bad("The body has more than one file.")
        else:
            self.file_field = self._name
            self.filename = options[b"filename"].decode("utf-8", "replace")
            self.file = self._begin()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._parts.append(data[start:end])
            return
        self._room -= end - start
        if self._room < 0:
            raise _bad(f"The fields beside the file have more than {FORM_ROOM:,} bytes.")
        self.fields[self._name] += data[start:end].decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


async def batches(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces, some of them together."""
    held: list[bytes] = []
    async for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= _BATCH:
            yield b"".join(held)
            held = []
    if held:
        yield b"".join(held)


def _bad(message: str) -> ServiceError:
    return ServiceError(400, "invalid_multipart_form", message)
