"""Settings of the service: default, range and meaning, once; the command line is made of them."""

from ipaddress import ip_network

from pydantic import Field, field_validator

from mnist_pipeline.ml.settings import ReviewSettings

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Image formats that are accepted from strangers."""


SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus_client knows, when it is imported, that several processes count together."""

GONE = {
    "max_batch_images": "requests share no forward pass any more, since one takes a tenth of a millisecond",
    "batch_wait_ms": "requests share no forward pass any more, and none waits for another",
}
"""Settings of earlier versions, and why they are gone."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})


class ServeSettings(ReviewSettings):
    """The ways in which the service listens, reloads and bounds what it is sent."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all, then set SERVE_TOKEN.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: str = Field(
        "",
        pattern=r"^[A-Za-z0-9.:\[\]_, -]*$",
        description="Host names by which it may be reached, with commas. Where it listens on loopback, loopback names "
        "are always known; elsewhere any name is if none is given. Not looked at where SERVE_TOKEN is set.",
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses or networks of proxies, with commas, whose X-Forwarded-For tells a request's source. "
        "Without them all that comes through a proxy is from one source.",
    )
    workers: int = Field(1, ge=1, le=256, description="Processes that answer on the one port.")
    threads: int = Field(1, ge=1, le=1024, description="Threads of one forward pass.")
    decoders: int = Field(2, ge=1, le=64, description="Large requests that each process reads at a time.")
    reload_seconds: float = Field(2.0, gt=0, le=3600, description="Between two looks at what is deployed.")
    max_connections: int = Field(
        512, ge=1, le=65536, description="Connections of each process; a new one ends the one that was idle longest."
    )
    header_seconds: float = Field(10.0, gt=0, le=3600, description="The header of a request must arrive in this time.")
    max_requests: int = Field(256, ge=1, le=65536, description="Requests in work at a time; more are answered 503.")
    max_body_mib: float = Field(8.0, gt=0, le=1024, description="Largest request, in MiB.")
    max_held_mib: float = Field(256.0, gt=0, le=65536, description="All requests in work together, in MiB.")
    max_megapixels: float = Field(
        25.0, gt=0, le=1000, description="Pictures of one request together; checked before decoding."
    )
    max_images: int = Field(64, ge=1, le=65536, description="Images in one request.")
    body_seconds: float = Field(30.0, gt=0, le=3600, description="A request must have arrived whole within this time.")
    corrections_per_minute: int = Field(120, ge=1, le=100000, description="Corrections accepted in a minute.")
    review: bool = Field(
        True,
        description="off: nobody looks at images here; /review and confirmed labels are refused, as on a service that "
        "strangers reach.",
    )
    review_items: int = Field(
        200, ge=1, le=100000, description="Doubtful answers, and doubtful labels, kept for /review."
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for name in filter(None, map(str.strip, value.split(","))):
            try:
                ip_network(name, strict=False)
            except ValueError:
                raise ValueError(f"{name!r} is neither an address such as 10.0.0.1 nor a network: 10.0.0.0/8") from None
        return value

    def known_hosts(self) -> frozenset[str] | None:
        """Return the host names (without port) that requests may name; None: any."""
        named = frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())
        return named | LOOPBACK if self.host in LOOPBACK else named or None
