"""A mail server on loopback: it speaks SMTP with TLS and a login, or fails as mail servers do."""

import base64
import datetime
import socketserver
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "alerts@example.com", "a password: with / @ and %"


def certificate(folder: Path, name: str = "localhost") -> Path:
    """Write a certificate of a server, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return file


class SmtpStub(socketserver.ThreadingTCPServer):
    """Keeps the messages that it took, with their receivers, and whether they came over TLS with a login."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, pem: Path, tls: str) -> None:
        """`tls` is starttls, from the beginning (smtps), or none."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(pem)
        self.tls = tls
        self.messages: list[EmailMessage] = []
        self.receivers: list[list[str]] = []
        self.seen: list[bytes] = []
        """What was sent in clear."""
        self.refusals: dict[str, str] = {}
        """By the first word of a command, or by an address: the answer in place of the usual one."""

    def url(self, login: str = "", query: str = "") -> str:
        scheme = "smtps" if self.tls == "smtps" else "smtp"
        return f"{scheme}://{login}localhost:{self.server_address[1]}{query}"


class _Handler(socketserver.StreamRequestHandler):
    server: SmtpStub

    def _wrap(self) -> None:
        self.request = self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.is_safe = True

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self) -> None:
        self.is_safe, self.is_known, receivers = False, False, list[str]()
        try:
            if self.server.tls == "smtps":
                self._wrap()
            self._say("220 localhost")
            while line := self.rfile.readline():
                if not self.is_safe:
                    self.server.seen.append(line)
                if self._answer(line.decode().strip(), receivers):
                    return
        except (ssl.SSLError, ConnectionError):  # the client did not like the certificate
            return

    def _answer(self, line: str, receivers: list[str]) -> bool:
        """Answer a command. Returns whether it was the last one."""
        word, _, rest = line.partition(" ")
        refused = [answer for part, answer in self.server.refusals.items() if part in (word, *rest.split("<"))]
        refused += [answer for part, answer in self.server.refusals.items() if "@" in part and part in rest]
        if refused:
            self._say(refused[0])
        elif word == "ehlo":
            offered = ["STARTTLS"] if self.server.tls == "starttls" and not self.is_safe else ["AUTH PLAIN"]
            self._say(f"250-localhost\r\n250 {offered[0]}")
        elif word == "STARTTLS":
            self._say("220 go on")
            self._wrap()
        elif word == "AUTH":
            self.is_known = base64.b64decode(rest.split()[1]).decode() == f"\0{USER}\0{PASSWORD}"
            self._say("235 welcome" if self.is_known else "535 5.7.8 wrong user or password")
        elif word == "rcpt":
            receivers.append(rest.partition("<")[2].partition(">")[0])
            self._say("250 ok")
        elif word == "data":
            self._say("354 go on")
            content = b""
            while (more := self.rfile.readline()) != b".\r\n":
                content += more
            self.server.messages.append(message_from_bytes(content, policy=policy.default))
            self.server.receivers.append([*receivers])
            self._say("250 taken")
        else:
            self._say("221 bye" if word == "QUIT" else "250 ok")
        return word == "QUIT"


@contextmanager
def smtp_stub(pem: Path, tls: str = "starttls") -> Iterator[SmtpStub]:
    """Serve."""
    with SmtpStub(pem, tls) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
