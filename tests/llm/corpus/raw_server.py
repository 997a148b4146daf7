"""A server on loopback that answers each request with the very bytes that a test gives it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Answer = bytes | Callable[[socket.socket], None]


class RawServer:
    """Takes its answers from `answers`, one a request; when they are used up, `then` again and again."""

    def __init__(self, *answers: Answer, then: Answer = b"HTTP/1.1 500 over\r\nContent-Length: 0\r\n\r\n") -> None:
        self.answers = list(answers)
        self.then = then
        self.requests: list[bytes] = []
        self.over = threading.Event()  # for answers that would go on for ever
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.host}/data/words.txt"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        request = b""
        while b"\r\n\r\n" not in request:
            chunk = connection.recv(1 << 16)
            if not chunk:
                return
            request += chunk
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else self.then
        if isinstance(answer, bytes):
            connection.sendall(answer)
        else:
            answer(connection)

    def stop(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()

    def endless(self, head: bytes, piece: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
        """An answer that never ends, until the client closes or the test is over."""

        def answer(connection: socket.socket) -> None:
            connection.sendall(head)
            while not self.over.wait(pause):
                connection.sendall(piece)

        return answer


@contextlib.contextmanager
def raw_server(*answers: Answer, **given: Answer) -> Iterator[RawServer]:
    server = RawServer(*answers, **given)
    try:
        yield server
    finally:
        server.stop()
