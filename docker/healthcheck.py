"""Exit 0 when the server in this container answers /health with 200, else 1. Standard library only."""

import http.client
import sys


def healthy(host: str, port: int, timeout: float = 4.0) -> bool:
    """Whether http://host:port/health answers 200 within `timeout` seconds.

    http.client and not urllib: a proxy from the environment must not be asked.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    sys.exit(0 if healthy("127.0.0.1", port) else 1)
