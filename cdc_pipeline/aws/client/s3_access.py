"""Access to S3 for all clients: host, region, proxy, certificate authorities and credentials.

Taken from botocore's own client, so that other clients agree with it.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any

from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies

CONNECT_SECONDS, READ_SECONDS = 5, 60
"""Timeouts of every client; pyarrow's defaults are 1 and 3."""
_ORDINARY = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com")
_AWS_HOST = re.compile(r"https://s3(-fips)?(\.dualstack)?(\.[a-z0-9-]+)?\.amazonaws\.[a-z.]+")


@dataclass(frozen=True)
class S3Access:
    """Access to S3, or to one bucket. Credentials are frozen and may expire.

    `endpoint_url`: None for the host that every client derives from the region (public, partition
    `aws`). `has_bucket_in_host`: addresses are `https://bucket.host/key`, else
    `https://host/bucket/key`. `proxy_url`: None for no proxy, also by NO_PROXY. `ca_file`: the
    certificate authorities (PEM) for the server's certificate.
    """

    endpoint_url: str | None
    region: str | None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    has_bucket_in_host: bool = False
    proxy_url: str | None = field(default=None, repr=False)  # may hold a password
    ca_file: str | None = None


def endpoint_style(endpoint: str, style: str | None, bucket: str | None) -> tuple[str | None, bool]:
    """Return `endpoint_url` and `has_bucket_in_host` of `S3Access` for botocore's endpoint.

    `style`: botocore's `addressing_style`. A configured host gets the bucket in the path, as in
    botocore; AWS's own host in the host name, unless a dot in the bucket would break TLS.
    """
    endpoint = endpoint.rstrip("/")
    has_dot = bucket is not None and "." in bucket
    in_host = style == "virtual" or (style != "path" and bool(_AWS_HOST.fullmatch(endpoint)))
    in_host = in_host and not has_dot
    if in_host and _ORDINARY.fullmatch(endpoint):
        return None, True
    return endpoint, in_host


def s3_access(client: Any, bucket: str | None, ca_bundle: str | None) -> S3Access:
    """Return a client's access to a bucket, without credentials.

    `ca_bundle`: botocore's setting of that name (AWS_CA_BUNDLE).
    """
    endpoint = client.meta.endpoint_url
    style = (client.meta.config.s3 or {}).get("addressing_style")
    shown, in_host = endpoint_style(endpoint, style, bucket)
    return S3Access(
        endpoint_url=shown,
        region=client.meta.region_name,
        has_bucket_in_host=in_host,
        proxy_url=ProxyConfiguration(get_environ_proxies(endpoint)).proxy_url_for(endpoint),
        ca_file=authorities(ca_bundle),
    )


def authorities(ca_bundle: str | None) -> str | None:
    """Return the file of certificate authorities in botocore's order; its own by default.

    `ca_bundle`: botocore's setting of that name (AWS_CA_BUNDLE).
    """
    return get_cert_path(ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or True)
