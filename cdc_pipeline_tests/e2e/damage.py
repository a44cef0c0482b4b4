"""Damage done to a finished export in S3, with or without making its manifests fit."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cdc_pipeline_tests.e2e.world import World


@dataclass
class Export:
    """One export's files, read and written by S3 calls alone."""

    world: World
    summary_key: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.get(self.summary_key))

    @property
    def files_key(self) -> str:
        return self.summary["manifestFilesS3Key"]

    @property
    def files(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.get(self.files_key).splitlines()]

    @property
    def filled(self) -> str:
        """The key of a data file with items in it."""
        return next(f["dataFileS3Key"] for f in self.files if f["itemCount"])

    def get(self, key: str) -> bytes:
        return self.world.client("s3").get_object(Bucket=self.world.bucket, Key=key)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        self.world.client("s3").put_object(Bucket=self.world.bucket, Key=key, Body=data)

    def lines(self) -> list[bytes]:
        return gzip.decompress(self.get(self.filled)).splitlines()

    def put_manifest(self, key: str, data: bytes) -> None:
        """A manifest and the checksum that fits it."""
        self.put(key, data)
        self.put(f"{key.removesuffix('.json')}.md5", md5(data).encode())

    def rewrite(self, lines: list[bytes] | None = None, *, compressed: bytes | None = None) -> None:
        """Replace the filled data file; MD5 and counts in the manifests are made to fit."""
        key, files, summary = self.filled, self.files, self.summary
        if compressed is None:
            compressed = gzip.compress(b"".join(line + b"\n" for line in lines or ()))
        self.put(key, compressed)
        for file in files:
            if file["dataFileS3Key"] == key:
                file["md5Checksum"] = md5(compressed)
                if lines is not None:
                    file["itemCount"] = len(lines)
        self.set_files(files)
        self.set_count(summary, sum(file["itemCount"] for file in files))

    def set_files(self, files: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(file) + "\n" for file in files)
        self.put_manifest(self.files_key, text.encode())

    def set_count(self, summary: dict[str, Any], items: int) -> None:
        self.put_manifest(self.summary_key, json.dumps(summary | {"itemCount": items}).encode())


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def not_json(export: Export) -> None:
    export.rewrite([*export.lines()[:-1], export.lines()[-1][:-3]])


def without_item(export: Export) -> None:
    export.rewrite([*export.lines()[:-1], b'{"Keys":{"pk":{"S":"a"}}}'])


def without_key(export: Export) -> None:
    export.rewrite([*export.lines()[:-1], b'{"Item":{"sk":{"N":"1"},"v":{"S":"SECRET-x"}}}'])


def unknown_type(export: Export) -> None:
    line = b'{"Item":{"pk":{"S":"a"},"sk":{"N":"1"},"v":{"ZZ":"SECRET-x"}}}'
    export.rewrite([*export.lines()[:-1], line])


def one_key_twice(export: Export) -> None:
    export.rewrite([*export.lines()[:-1], export.lines()[0]])


def file_missing(export: Export) -> None:
    export.world.client("s3").delete_object(Bucket=export.world.bucket, Key=export.filled)


def wrong_md5(export: Export) -> None:
    export.put(export.filled, gzip.compress(b"\n".join(export.lines()[:-1])))


def cut_short(export: Export) -> None:
    export.rewrite(compressed=export.get(export.filled)[:-9])


def not_gzip(export: Export) -> None:
    export.rewrite(compressed=b"SECRET-x is no gzip")


def count_too_high(export: Export) -> None:
    """Manifests that agree with each other on an item that no file holds."""
    files, summary = export.files, export.summary
    for file in files:
        if file["dataFileS3Key"] == export.filled:
            file["itemCount"] += 1
            break
    export.set_files(files)
    export.set_count(summary, summary["itemCount"] + 1)


def counts_disagree(export: Export) -> None:
    export.set_count(export.summary, export.summary["itemCount"] + 1)


def summary_checksum_wrong(export: Export) -> None:
    export.put(export.summary_key, export.get(export.summary_key) + b" ")


def files_checksum_wrong(export: Export) -> None:
    export.put(export.files_key, export.get(export.files_key) + b" ")


def checksum_missing(export: Export) -> None:
    key = f"{export.summary_key.removesuffix('.json')}.md5"
    export.world.client("s3").delete_object(Bucket=export.world.bucket, Key=key)


def manifest_is_not_one(export: Export) -> None:
    export.put_manifest(export.summary_key, b'{"itemCount": "SECRET-x"}')
