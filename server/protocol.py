"""BoundedHeaders: uvicorn's HTTP protocol with an end to what headers and trailers may hold."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n"


class BoundedHeaders(HttpToolsProtocol):
    """Closes connections that send MAX_HEADER_BYTES of headers or trailers; httptools would keep any amount.

    What brings neither the end of headers, nor a part of a body, nor the end of a request is one of these.
    """

    _header_bytes = 0
    _was_headers = True

    def data_received(self, data: bytes) -> None:
        """Bytes have come; asyncio's callback."""
        self._was_headers = True
        super().data_received(data)
        self._header_bytes = self._header_bytes + len(data) if self._was_headers else 0
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The headers are complete; httptools' callback."""
        self._was_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body has come; httptools' callback."""
        self._was_headers = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete; httptools' callback."""
        self._was_headers = False
        super().on_message_complete()
