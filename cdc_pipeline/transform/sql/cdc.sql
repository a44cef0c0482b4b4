-- One row per change of a day: `landed` without repeats of an identity (the first landed stays).
SELECT
    uuid, op, time_stamp, data, keys, new_image, old_image, write_time_us, position,
    sequence_number, shard_id, event_id, is_ttl_delete, transport, landed_at,
    generation, order_key
FROM (
    SELECT
        landed.*,
        ROW_NUMBER() OVER (PARTITION BY uuid ORDER BY order_key, landed_at) AS occurrence
    FROM landed
) AS numbered
WHERE occurrence = 1
ORDER BY keys, order_key
