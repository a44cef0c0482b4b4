-- One row per change of a day: `landed` without repeats of an identity. The first generation
-- counts: what comes again in a later one is old. In it the last place counts: a change that turned
-- out to be later than another one of its time has landed again behind it. Then the first landed.
SELECT
    uuid, op, time_stamp, data, keys, new_image, old_image, write_time_us, position,
    sequence_number, shard_id, event_id, is_ttl_delete, transport, landed_at,
    generation, order_key
FROM (
    SELECT
        landed.*,
        ROW_NUMBER() OVER (
            PARTITION BY uuid ORDER BY generation, order_key DESC, landed_at
        ) AS occurrence
    FROM landed
) AS numbered
WHERE occurrence = 1
ORDER BY keys, order_key
