"""Connections that send too much, too slowly, or nothing: closed or refused within bounds, and others are answered."""

import json
import socket
from contextlib import ExitStack
from threading import Event, Semaphore

import httpx
import pytest

from mnist_pipeline.serve import connections, predicting
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service, process
from mnist_pipeline_tests.serve.test_predict import ARRAY, TEST
from mnist_pipeline_tests.task.drawing import drawn, encode
from mnist_pipeline_tests.task.examples import png

START = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def connect(service: Service) -> socket.socket:
    connection = socket.create_connection(service.address, timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send(connection: socket.socket, data: bytes) -> bool:
    """False if the other side has closed."""
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def refused(received: bytes) -> tuple[int, str]:
    """Status and code of a refusal."""
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "header",
    [
        b"".join(b"X-%d: 1\r\n" % number for number in range(101)) + b"\r\n",
        b"X: " + b"a" * 40_000 + b"\r\n\r\n",
        b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(50)) + b"\r\n",
    ],
    ids=["fields", "one long", "many long"],
)
def test_a_header_that_is_too_large_is_refused(service, header):
    with connect(service) as connection:
        send(connection, START + header)
        assert refused(answer(connection)) == (431, "too_large")


def test_a_path_that_is_too_long_is_refused(service):
    with connect(service) as connection:
        send(connection, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert refused(answer(connection)) == (431, "too_large")


@pytest.mark.parametrize("piece", [b"a" * 4096, b"X: 1\r\n" * 500], ids=["a value", "fields"])
def test_a_header_without_end_is_refused_once_it_is_too_large(service, piece):
    with connect(service) as connection:
        send(connection, START + b"X: ")
        sent = 0
        while send(connection, piece) and sent < 50 << 20:
            sent += len(piece)
        assert sent < 50 << 20


def test_the_usual_header_of_a_browser_is_no_trouble(service):
    cookies = {"Cookie": "a=" + "b" * 8000}
    assert service.client.get("/healthz", headers=cookies).status_code == 200


@pytest.mark.parametrize("begin", [b"", START, b"\r\n"], ids=["nothing", "half a header", "empty lines"])
@pytest.mark.parametrize("dribbles", [False, True])
def test_a_header_that_never_ends_is_given_up_though_bytes_come(store, deployed, begin, dribbles):
    with Service(store, header_seconds=0.5) as service, connect(service) as connection:
        send(connection, begin)
        if not dribbles:
            assert answer(connection) == b""
        else:
            piece = begin[-2:] or b"G"  # bytes that keep it a beginning
            connection.settimeout(0.05)
            for _ in range(400):
                if not send(connection, piece if piece != b"G" else b"\r\n"):
                    break
                try:
                    if connection.recv(100) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    break
            else:
                pytest.fail("the connection was never closed")


def test_a_connection_that_waits_for_nothing_makes_room_for_another(store, deployed):
    with Service(store, max_connections=5) as service, ExitStack() as stack:
        idle = [stack.enter_context(connect(service)) for _ in range(20)]
        for connection in idle[-3:]:
            send(connection, START)
        assert service.predict(png(TEST.images[0])).status_code == 200
        assert [answer(connection) for connection in idle[:10]] == [b""] * 10  # the oldest were closed


HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"


def test_bodies_that_do_not_come_make_room_for_others(store, deployed):
    with Service(store, max_connections=3) as service, ExitStack() as stack:
        for _ in range(9):
            send(stack.enter_context(connect(service)), HEAD % 1000)
        assert service.predict(png(TEST.images[0])).status_code == 200


def test_where_all_connections_are_in_work_another_one_is_refused(store, deployed, monkeypatch):
    reading, done = Semaphore(0), Event()
    read_images = predicting.read_images

    def slowly(*arguments, quick=False):
        if not quick:
            reading.release()
            assert done.wait(60)
        return read_images(*arguments, quick=quick)

    monkeypatch.setattr(predicting, "read_images", slowly)
    file = encode(drawn(size=(1000, 1000)))
    with Service(store, max_connections=3, decoders=3) as service, ExitStack() as stack:
        busy = [stack.enter_context(connect(service)) for _ in range(3)]
        for connection in busy:
            send(connection, HEAD % len(file) + file)
        for _ in busy:
            assert reading.acquire(timeout=60)
        assert _refused_now(service)
        done.set()
        for connection in busy:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert service.predict(png(TEST.images[0])).status_code == 200


def test_requests_far_ahead_of_their_answers_end_the_connection(service):
    with connect(service) as connection:
        send(connection, (START + b"\r\n") * 5)
        received = b""
        while received.count(b"HTTP/1.1 200") < 5:
            received += connection.recv(65536)
    for _ in range(3):
        with connect(service) as connection:
            send(connection, (START + b"\r\n") * 10_000)
            assert answer(connection).count(b"HTTP/1.1 200") < 10_000
    assert service.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("begin", [b"", b"0\r\n"], ids=["a chunk's extension", "after the last chunk"])
def test_what_surrounds_the_chunks_of_a_body_has_an_end(service, begin):
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    head += b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))  # a body does not buy room for what surrounds it
    with connect(service) as connection:
        send(connection, head + (begin + b"X: " if begin else b"1;"))
        sent = 0
        while send(connection, b"a" * 65536) and sent < 50 << 20:
            sent += 65536
        assert sent < 50 << 20


def test_a_body_in_chunks_of_one_byte_is_no_trouble(service):
    file = png(TEST.images[0])
    pieces = (file[at : at + 1] for at in range(len(file)))
    answered = service.client.post("/predict", content=pieces, headers={"Content-Type": "image/png"})
    assert answered.status_code == 200


def _refused_now(service: Service) -> bool:
    with connect(service) as connection:
        send(connection, START + b"Connection: close\r\n\r\n")
        received = answer(connection)
    return received.startswith(b"HTTP/1.1 503")


def test_more_connections_than_files_may_be_open(store, deployed, tmp_path):
    with ExitStack() as stack:
        limited = ("prlimit", "--nofile=128")
        url, _, _ = stack.enter_context(process("--store", store.base_path, prefix=limited, STORAGE_ROOT=str(tmp_path)))
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        for _ in range(300):
            stack.enter_context(socket.create_connection(address))
        assert httpx.post(f"{url}/predict", json={"image": ARRAY}).status_code == 200
        assert httpx.get(f"{url}/readyz").json()["problems"] == []


def test_who_does_not_read_is_given_up(store, deployed, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "MAX_PIPELINED", 1_000_000)  # it is not for this that the connection ends
    request, count = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 3000
    with Service(store) as service, connect(service) as connection:
        send(connection, request * count)  # about 70 MB of answers, more than the system keeps for one connection
        wait_until(lambda: not service.server.server_state.connections, "the connection to be given up", 120)
        assert answer(connection).count(b"HTTP/1.1 200 OK") < count
        assert service.client.get("/healthz").status_code == 200
