"""BoundedHeaders: uvicorn's HTTP protocol with an end to what headers may hold."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n"


class BoundedHeaders(HttpToolsProtocol):
    """Closes connections whose headers pass MAX_HEADER_BYTES; httptools itself would keep any amount."""

    _in_headers = True
    _header_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes have come; asyncio's callback."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n"
                )
                self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins; httptools' callback."""
        self._in_headers, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers are complete; httptools' callback."""
        self._in_headers = False
        super().on_headers_complete()
