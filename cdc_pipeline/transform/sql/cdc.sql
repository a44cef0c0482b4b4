-- One row per change of a day: `landed` without repeats of an identity, and without healed rows
-- that others tell (`told`). The first generation counts: what comes again in a later one is old.
-- In it the last place counts: a change that turned out to be later than another one of its time
-- has landed again behind it. Then the first landed.
SELECT
    uuid, op, time_stamp, data, keys, new_image, old_image, write_time_us, position,
    sequence_number, shard_id, event_id, is_ttl_delete, transport, landed_at,
    generation, order_key
FROM (
    SELECT
        landed.*,
        ROW_NUMBER() OVER (
            PARTITION BY landed.uuid
            ORDER BY landed.generation, landed.order_key DESC, landed.landed_at
        ) AS occurrence
    FROM landed
    LEFT JOIN told
        ON told.uuid = landed.uuid
        AND told.generation = landed.generation
        AND landed.transport IN ('export', 'read')
    WHERE told.uuid IS NULL
) AS numbered
WHERE occurrence = 1
ORDER BY keys, order_key
