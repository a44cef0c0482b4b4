-- One row per change of a day: `landed` without repeats of an identity, and without healed rows
-- that other rows contain (`redundant_heals`). Of repeats the first generation counts: a repeat in
-- a later one is old. Within it the last position counts: a change that proved to be later than
-- another one of its time has landed again after it. Then the first landed.
-- A record in place of a line of a later generation gets the line's position: one heal of several
-- gaps lands in one generation, and other lines of it precede the changes captured between the
-- gaps.
SELECT
    uuid, op, time_stamp, data, keys, new_image, old_image, write_time_us, position,
    sequence_number, shard_id, event_id, is_ttl_delete, transport, landed_at,
    generation, COALESCE(raised_key, order_key) AS order_key
FROM (
    SELECT
        landed.*,
        raised.order_key AS raised_key,
        ROW_NUMBER() OVER (
            PARTITION BY landed.uuid
            ORDER BY landed.generation, landed.order_key DESC, landed.landed_at
        ) AS occurrence
    FROM landed
    LEFT JOIN redundant_heals
        ON redundant_heals.uuid = landed.uuid
        AND redundant_heals.generation = landed.generation
        AND landed.transport IN ('export', 'read')
    LEFT JOIN (
        SELECT by_uuid, by_generation, MAX(order_key) AS order_key
        FROM redundant_heals
        WHERE by_generation < generation
        GROUP BY by_uuid, by_generation
    ) AS raised
        ON raised.by_uuid = landed.uuid
        AND raised.by_generation = landed.generation
    WHERE redundant_heals.uuid IS NULL
) AS numbered
WHERE occurrence = 1
ORDER BY keys, order_key
