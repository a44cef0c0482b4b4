"""Simulators of AWS that misbehave on request: DynamoDB Streams and Kinesis, over HTTP.

    clock = SimulatedClock()
    with StreamsSimulator(clock=clock) as sim:
        sim.create_table("orders", key=("pk", "sk"), shards=4)
        sim.put("orders", {"pk": {"S": "a"}, "sk": {"N": "1"}})
        sim.rotate("orders")
        sim.faults.script("GetRecords", faults.throttled(), faults.cut())
        ...                      # any AWS client, pointed at sim.endpoint_url
        sim.records("orders")    # every record ever written: the truth to compare with
        sim.items("orders")      # the table as it is now

    with KinesisSimulator(clock=clock) as sim:      # all of the above, and
        sim.create_kinesis("changes", shards=2)
        sim.replicate("orders", "changes", precision="MILLISECOND")
        sim.disturb("orders", duplicates=0.2, late=0.2)
        sim.merge_kinesis("changes", *sim.open_kinesis("changes"))
        sim.skip_next("orders")  # CloudWatch counts it, Kinesis never has it
        sim.changes("orders")    # every change ever made, and where it was delivered

    with ExportsSimulator(clock=clock) as sim:      # all of the first, and
        sim.switch_backups("orders", on=False)
        sim.spoil_exports("fail", "flip")           # the next two exports
        sim.objects              # what exports wrote, by key
        sim.versions("orders")   # every version of every item ever

Modules: `clock` (settable time), `items` (attribute values), `streams_model` (tables, streams,
shards; no HTTP), `streams_service` (the API's operations on the model), `faults` (what goes
wrong, when, how often it did), `streams_server` (HTTP, and `StreamsSimulator`, which ties them),
`clients` (real clients of a simulator); `kinesis_model`, `kinesis_service`, `kinesis_server` put
Kinesis on top of them, `exports` puts recovery and exports.

What is modelled
- AWS JSON 1.0: ListStreams, DescribeStream, GetShardIterator, GetRecords; of DynamoDB itself
  DescribeTable, DescribeContinuousBackups, GetItem, BatchGetItem, Scan. Any other operation, and
  any parameter that is not modelled, is refused, never ignored.
- Shards own ranges of a hash of the partition key. A rotation closes a shard and opens one child,
  a split opens two. A shard is open while it has no EndingSequenceNumber. Listings page at 100,
  in the order of shard ids, which within one millisecond says nothing: a child can precede its
  parent.
- Sequence numbers have 21 digits or more, of differing length, with holes, and rise along a
  lineage. Unrelated shards live in unrelated number ranges, so comparing their numbers gives
  nonsense.
- Records: view types, creation times in whole seconds of the simulated clock, TTL deletes,
  SizeBytes. A write that changes nothing by value (1 and 1.0, sets in any order) has no record.
- 24 hours of retention by the clock: records go one by one from the head of a shard; a closed
  shard is unlisted when its last record's (if empty: its closing's) 24 hours have passed; an idle
  open shard stays. A disabled stream is readable for 24 hours and then gone; enabling makes a new
  one.
- Iterators are opaque, expire after 15 minutes of the clock, and are told when what they point at
  was trimmed. Pages hold at most 1000 records or 1 MB. Only the end of a closed shard has no
  NextShardIterator.

What AWS does here is unconfirmed, so code under test must not depend on it
- An AFTER_SEQUENCE_NUMBER position whose own record is trimmed raises TrimmedDataAccessException,
  even if nothing behind it was trimmed (the API reference: "a sequence number older than the trim
  point"); `StreamsSimulator(strict_trim=False)` raises only if records behind it are gone.
- The answer with a closed shard's last record already lacks NextShardIterator. (A shard that closes
  under a reader at its tip ends with an empty page.)
- A shard's StartingSequenceNumber is its first record's, its ending one its last record's (the API
  reference's words); `StreamsSimulator(exact_bounds=False)` puts them below and above.
- An unlisted shard: GetShardIterator says ResourceNotFoundException; an iterator in it gets
  TrimmedDataAccessException if there were records behind it, else ResourceNotFoundException.
- 1 MB is measured as the serialised records. SizeBytes counts keys and the images in the record.
- ThrottlingException and ValidationException carry the `com.amazon.coral` prefixes.
- x-amz-crc32 is sent with DynamoDB's answers, not with those of DynamoDB Streams.

What is modelled of Kinesis
- AWS JSON 1.1, as botocore speaks it: DescribeStreamSummary, ListShards, GetShardIterator,
  GetRecords; of DynamoDB also DescribeKinesisStreamingDestination; of CloudWatch (AWS JSON 1.0)
  GetMetricData, GetMetricStatistics and ListMetrics for FailedToReplicateRecordCount.
- One JSON per record, several tables in a stream: fields in any order, binary encoded twice, times
  in ms or µs, changing in mid-stream, ms also without a name. Changes are delivered late, twice, in
  any order (`disturb`, `hold`, `again`), each time with a sequence number of its own; one item's
  changes can have one time. What is larger than the stream's limit is counted and never comes.
- Shards own ranges of the MD5 of the partition key, which is made of the item's whole key. A split
  has one parent, a merge two. Sequence numbers rise within a shard and from parents to children.
- Retention of 24 to 8760 hours, by arrival; a lower one trims at once, a higher one brings nothing
  back. Closed shards are listed until their closing is that old. A trimmed position is no error:
  reading starts at the oldest record. A stream deleted and created again has the same ARN and the
  same names of shards; positions of the old one are no arguments.
- ListShards pages at 1000, its tokens live 300 s, all filters. Iterators live 5 minutes. Pages hold
  10,000 records or 10 MiB and say MillisBehindLatest; the end of a closed shard has ChildShards and
  no NextShardIterator. With `limits=True` five reads a second and shard, by the clock, and none
  after a page of more than 2 MiB until that rate is kept (10 MiB: for 5 s).

What Kinesis does here is unconfirmed
- The answer with a closed shard's last record lacks NextShardIterator already;
  `KinesisSimulator(empty_end=True)` gives an empty page first.
- A record delivered twice has the same eventID and time. The metric's dimensions are TableName and
  DelegatedOperation=PutRecord; `metric_lag_seconds`: how long after its beginning a minute is told.

What is modelled of exports
- ExportTableToPointInTime (DYNAMODB_JSON, full and incremental), DescribeExport, and S3's GetObject
  of their files in one bucket. What is exported, what AWS refuses and the files' layout are the
  sandbox's; an export is over 120 s after its request, by the clock.
- Recovery reaches back 35 days and lags five minutes behind; off and on it begins anew.

What is not modelled: signatures and permissions, request rates and the limit of two readers per
shard (script a throttling fault instead), AT_TIMESTAMP iterators, ENABLING/DISABLING and creation
states (changes are immediate), writes over HTTP, transactions, global tables, expressions,
secondary indexes, validation of items (so that tests can write what AWS would refuse),
DescribeTable's six hours of lag in ItemCount."""
