"""The simulator of Kinesis: DynamoDB's tables and streams as ever, and what they replicate."""

from collections.abc import Callable

from cdc_pipeline_tests.simulators.kinesis_model import (
    Change,
    Delivery,
    Destination,
    KinesisModel,
    KinesisShard,
    KinesisStream,
    Precision,
)
from cdc_pipeline_tests.simulators.kinesis_service import KinesisService
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator


class KinesisSimulator(StreamsSimulator):
    """DynamoDB, DynamoDB Streams, Kinesis and CloudWatch of one account, over HTTP.

    `limits`, `empty_end`, `metric_lag_seconds`: see the package's docstring; the rest as for
    `StreamsSimulator`. Faults of Kinesis' operations are scripted as `kinesis:GetRecords`.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        seed: int = 0,
        strict_trim: bool = True,
        exact_bounds: bool = True,
        limits: bool = False,
        empty_end: bool = False,
        metric_lag_seconds: float = 0,
    ) -> None:
        super().__init__(clock=clock, seed=seed, strict_trim=strict_trim, exact_bounds=exact_bounds)
        self._kinesis = KinesisModel(self.clock, seed, exact_bounds=exact_bounds)
        self._model = self._kinesis
        self._service = self._kinesis_service = KinesisService(
            self._kinesis,
            strict_trim=strict_trim,
            limits=limits,
            empty_end=empty_end,
            metric_lag_seconds=metric_lag_seconds,
        )

    # ------------------------------------------------------------------------------- streams

    def create_kinesis(self, stream: str, *, shards: int = 1) -> None:
        with self._lock:
            if stream in self._kinesis.kinesis:
                raise ValueError(f"Kinesis stream {stream} exists")
            self._kinesis.kinesis[stream] = KinesisStream(stream, shards, self._kinesis)

    def delete_kinesis(self, stream: str) -> None:
        """The stream and all it holds are gone; what fed it stops. One of its name may follow."""
        with self._lock:
            self._kinesis.kinesis.pop(stream)
            for destinations in self._kinesis.destinations.values():
                for destination in destinations:
                    destination.active &= destination.stream != stream

    def kinesis_arn(self, stream: str) -> str:
        return self._kinesis.kinesis_arn(stream)

    def serve_kinesis_as(self, stream: str, arn: str) -> None:
        """Give a stream the ARN that another AWS tells of it, whose DynamoDB is elsewhere."""
        with self._lock:
            self._kinesis.kinesis[stream].arn = arn

    def set_retention(self, stream: str, hours: int) -> None:
        """24 to 8760 hours. What was trimmed before does not come back."""
        if not 24 <= hours <= 8760:
            raise ValueError(f"{hours} hours of retention are not allowed")
        with self._lock:
            found = self._kinesis.kinesis[stream]
            found.trim()
            found.retention_hours = hours

    def set_largest_record(self, stream: str, kib: int) -> None:
        with self._lock:
            self._kinesis.kinesis[stream].max_record_kib = kib

    def ignore_partition_keys(self, stream: str) -> None:
        """The distribution AUTO of on-demand streams: any record goes to any shard."""
        with self._lock:
            self._kinesis.kinesis[stream].by_partition_key = False

    def end_with_empty_pages(self) -> None:
        """From now on, see `empty_end`."""
        with self._lock:
            self._kinesis_service.empty_end = True

    def split_kinesis(self, stream: str, shard_id: str, at: int | None = None) -> list[str]:
        """Close an open shard, give the two parts of its range to children; their ids."""
        with self._lock:
            found = self._kinesis.kinesis[stream]
            return [child.shard_id for child in found.split(found.shards[shard_id], at)]

    def merge_kinesis(self, stream: str, left: str, right: str) -> str:
        """Close two open neighbours, give both ranges to one child; its id."""
        with self._lock:
            found = self._kinesis.kinesis[stream]
            return found.merge(found.shards[left], found.shards[right]).shard_id

    def open_kinesis(self, stream: str) -> list[str]:
        """The ids of the open shards, by hash range."""
        with self._lock:
            return [shard.shard_id for shard in self._kinesis.kinesis[stream].open_shards()]

    def kinesis_shards(self, stream: str) -> list[KinesisShard]:
        """Every shard that the stream has had, trimmed ones included."""
        with self._lock:
            return list(self._kinesis.kinesis[stream].shards.values())

    def put_data(self, stream: str, data: bytes, shard_id: str | None = None) -> Delivery:
        """A record that is no change of ours, in the first open shard or this one."""
        with self._lock:
            found = self._kinesis.kinesis[stream]
            shard = found.shards[shard_id] if shard_id else found.open_shards()[0]
            return found.add(shard, data, "somebody", None)

    # --------------------------------------------------------------------------- replication

    def replicate(self, table: str, stream: str, *, precision: Precision = "MICROSECOND") -> None:
        """From now on the table's changes go to this stream; a table has one destination."""
        with self._lock:
            if self._kinesis.destination(table) is not None:
                raise ValueError(f"table {table} has a Kinesis destination already")
            if stream not in self._kinesis.kinesis:
                raise ValueError(f"there is no Kinesis stream {stream}")
            found = self._kinesis.destinations.setdefault(table, [])
            found[:] = [other for other in found if other.stream != stream]
            found.append(Destination(stream, precision))

    def stop_replicating(self, table: str) -> None:
        """What waits is delivered; what follows goes nowhere."""
        with self._lock:
            target = self._target(table)
            self._kinesis.release(target)
            target.active = False

    def set_precision(self, table: str, precision: Precision) -> None:
        with self._lock:
            self._target(table).precision = precision

    def disturb(self, table: str, *, duplicates: float = 0.0, late: float = 0.0) -> None:
        """How probably a change comes twice, and how probably others overtake it."""
        with self._lock:
            target = self._target(table)
            target.duplicates, target.late = duplicates, late

    def hold(self, table: str) -> None:
        """Changes wait until `release`."""
        with self._lock:
            self._target(table).hold = True

    def release(self, table: str, *, backwards: bool = False) -> None:
        """Deliver what waits, in any order, or the last first; hold no more."""
        with self._lock:
            target = self._target(table)
            target.hold = False
            self._kinesis.release(target, backwards=backwards)

    def skip_next(self, table: str, count: int = 1) -> None:
        """DynamoDB fails to replicate the next changes; CloudWatch counts them."""
        with self._lock:
            self._target(table).skip += count

    def again(self, change: Change, shard_id: str | None = None) -> Delivery:
        """Deliver a change again, to its shard of now or to this one."""
        with self._lock:
            delivered = self._kinesis.deliver(change, shard_id)
            if delivered is None:
                raise ValueError("the change is too large for its stream")
            return delivered

    # ----------------------------------------------------------------------------- the truth

    def changes(self, table: str) -> list[Change]:
        """Every change of a table that was ever made, in order, wherever it went."""
        with self._lock:
            return list(self._kinesis.changes.get(table, []))

    def _target(self, table: str) -> Destination:
        found = self._kinesis.destination(table)
        if found is None:
            raise ValueError(f"table {table} has no Kinesis destination")
        return found
