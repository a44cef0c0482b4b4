-- Redundant healed rows of a day, by `uuid` and `generation`, because one change is one row of
-- `cdc`. Healed rows are lines of incremental exports, and items that a heal read again (`read`
-- without an event id). The row that contains the same change may land later, so this is decided
-- when a day is built.
-- 1. A captured record replaces a line with its item, time and new image. Old images and identities
--    may differ: a line has the last change of its item in a window, and the image before that
--    window. Times are rounded down: those of DynamoDB Streams, and of reads that complete its
--    events, to seconds, those of Kinesis perhaps to ms. An event without images replaces only a
--    delete.
-- 2. A line of a later generation replaces one of the same time: windows of two heals may overlap,
--    and everything landed of the item when the second gap opened was written before.
-- 3. An item read again has the time of its window's end. A row of a later generation that was
--    written before then is more exact.
-- `by_uuid`, `by_generation`: the replacing row, of its identity's first row (as in `cdc`); the
-- last one of several.
-- landed(uuid, generation, keys, op, new_image, write_time_us, transport, event_id, order_key), not
-- masked.
SELECT uuid, generation, order_key, by_uuid, by_generation
FROM (
    SELECT
        line.uuid,
        line.generation,
        line.order_key,
        other.uuid AS by_uuid,
        other.generation AS by_generation,
        ROW_NUMBER() OVER (
            PARTITION BY line.uuid, line.generation
            ORDER BY
                CASE WHEN other.generation = other.first_generation THEN 1 ELSE 0 END DESC,
                other.order_key DESC,
                other.uuid
        ) AS rank_of_other
    FROM (
        SELECT *, MIN(generation) OVER (PARTITION BY uuid) AS first_generation FROM landed
    ) AS other
    JOIN (
        SELECT uuid, generation, keys, op, new_image, write_time_us, transport, order_key
        FROM landed
        WHERE transport = 'export' OR (transport = 'read' AND event_id = '')
    ) AS line ON line.keys = other.keys
    WHERE CASE
        WHEN line.transport = 'read'
            THEN other.generation > line.generation AND other.write_time_us <= line.write_time_us
        WHEN line.op = 'D' AND other.op <> 'D' THEN FALSE
        WHEN line.op <> 'D' AND (other.new_image IS NULL OR other.new_image <> line.new_image)
            THEN FALSE
        WHEN other.transport = 'export'
            THEN other.generation > line.generation AND other.write_time_us = line.write_time_us
        WHEN other.transport = 'read' AND other.event_id = '' THEN FALSE
        WHEN other.transport IN ('dynamodb_streams', 'read')
            THEN other.write_time_us IN (
                line.write_time_us,
                line.write_time_us - line.write_time_us % 1000,
                line.write_time_us - line.write_time_us % 1000000
            )
        ELSE other.write_time_us IN (
            line.write_time_us, line.write_time_us - line.write_time_us % 1000
        )
    END
) AS ranked
WHERE rank_of_other = 1
