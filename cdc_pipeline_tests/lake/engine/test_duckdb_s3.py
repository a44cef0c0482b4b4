"""DuckDB reading the lake's files through pyarrow, from several threads at once."""

import threading
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from cdc_pipeline.lake.engine.duckdb_s3 import DuckS3, SharedFile


def test_threads_that_share_a_large_file_never_get_each_others_bytes(tmp_path: Path) -> None:
    path, count = tmp_path / "many.parquet", 200_000
    rows = pa.table({"id": range(count), "text": [f"{n * 7919:040d}" for n in range(count)]})
    pq.write_table(rows, path, row_group_size=1_000)
    with duckdb.connect() as connection:
        connection.execute("SET threads = 8")
        connection.register_filesystem(DuckS3(LocalFileSystem()))  # type: ignore[arg-type]
        for _ in range(2):
            found = connection.execute(
                f"SELECT count(*), count(DISTINCT id), sum(CAST(text AS HUGEINT) - id * 7919) "
                f"FROM read_parquet('s3://{path}')"
            ).fetchone()
            assert found == (count, count, 0)


def test_a_read_is_at_the_position_of_its_own_thread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = SharedFile(lambda: pa.OSFile(str(path)), "file")
    file.seek(2)
    other = threading.Thread(target=file.seek, args=(7,))
    other.start()
    other.join()
    assert (file.read(3), file.tell()) == (b"234", 5)
    assert (file.seek(-2, 2), file.read()) == (8, b"89")
    assert file.read(1) == b""


def test_an_answer_cut_short_is_an_error_and_not_old_memory() -> None:
    class Cut(pa.PythonFile):
        def read_at(self, nbytes: int, offset: int) -> bytes:
            return super().read_at(nbytes, offset)[:-1]

    cut = Cut(pa.BufferReader(b"0123456789"), "r")
    file = SharedFile(lambda: cut, "lake/part.parquet")
    with pytest.raises(OSError, match=r"lake/part\.parquet: 3 bytes instead of 4 at 0 of 10"):
        file.read(4)
