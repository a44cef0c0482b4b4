"""S3 as a pyarrow file system with refreshed credentials, for PyIceberg and DuckDB."""

import threading
from collections.abc import Mapping
from typing import Any

from pyarrow import PythonFile, fs

from cdc_pipeline.aws.client.s3_access import CONNECT_SECONDS, READ_SECONDS, S3Access
from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.output import S3Output
from cdc_pipeline.core.errors import SourceError


def open_s3(access: S3Access) -> fs.S3FileSystem:
    """Create a pyarrow client with fixed credentials; raises `SourceError`."""
    if access.access_key is None:
        raise SourceError(
            "S3: there are no AWS credentials",
            fix="give the pipeline AWS credentials: `aws sts get-caller-identity` works",
        )
    return fs.S3FileSystem(
        endpoint_override=access.endpoint_url,
        region=access.region,
        access_key=access.access_key,
        secret_key=access.secret_key,
        session_token=access.session_token,
        force_virtual_addressing=access.has_bucket_in_host,
        proxy_options=access.proxy_url,
        tls_ca_file_path=access.ca_file,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
    )


def s3_filesystem(aws: AwsSession, sse: Mapping[str, str] | None = None) -> fs.FileSystem:
    """Return a file system of `bucket/key` paths, with the current credentials at each call.

    pyarrow reads, botocore writes. `sse`: encryption of writes, as botocore's parameters.
    """
    return fs.PyFileSystem(_S3Handler(aws, sse or {}))


class _S3Handler(fs.FileSystemHandler):
    """Delegate calls to pyarrow's client of the bucket, replaced when credentials change.

    An open file keeps its client and so its credentials: botocore's are valid for ten minutes at
    least.
    """

    def __init__(self, aws: AwsSession, sse: Mapping[str, str]) -> None:
        self._aws = aws
        self._sse = sse
        self._clients: dict[str, tuple[S3Access, fs.S3FileSystem]] = {}
        self._lock = threading.Lock()

    def _fs(self, path: str) -> fs.S3FileSystem:
        bucket = path.partition("/")[0]
        access = self._aws.s3_access(bucket)
        with self._lock:
            cached = self._clients.get(bucket)
            if cached is None or cached[0] != access:
                cached = self._clients[bucket] = (access, open_s3(access))
            return cached[1]

    def get_type_name(self) -> str:
        return "s3"

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._fs(path).get_file_info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self._fs(selector.base_dir).get_file_info(selector)

    def open_input_file(self, path: str) -> Any:
        return self._fs(path).open_input_file(path)

    def open_input_stream(self, path: str) -> Any:
        return self._fs(path).open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        bucket, _, key = path.partition("/")
        return PythonFile(S3Output(self._aws.client("s3"), bucket, key, self._sse), mode="w")

    def delete_file(self, path: str) -> None:
        self._fs(path).delete_file(path)

    def normalize_path(self, path: str) -> str:
        return path

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: S3 has no folders."""

    def delete_dir(self, path: str) -> None:
        self._refuse(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._refuse(path)

    def delete_root_dir_contents(self) -> None:
        self._refuse("")

    def move(self, src: str, dest: str) -> None:
        self._refuse(src)

    def copy_file(self, src: str, dest: str) -> None:
        self._refuse(src)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        self._refuse(path)

    def _refuse(self, path: str) -> None:
        raise NotImplementedError(f"s3://{path}: the lake's files are read, created and deleted")
