-- Effective winners: later than the item in `base`, not older than its tombstone.
-- A winner equal to its tombstone counts: tombstones are committed before their base.
-- base(item_key, order_key, item, write_time_us, place); `replaces` is the place of the item there.
-- A fold needs places only; keys are for tombstones: of deletes, and of items with a tombstone.
-- The right side of each join is the one to hold in memory.
SELECT
    CASE WHEN w.op = 'D' OR t.item_key IS NOT NULL THEN w.item_key END AS item_key,
    CASE WHEN w.op = 'D' THEN w.order_key END AS order_key,
    w.op, w.write_time_us, w.place, b.place AS replaces
FROM base AS b
RIGHT JOIN (
    SELECT c.item_key, c.order_key, c.op, c.write_time_us, c.place
    FROM changes AS c
    JOIN winners AS last_change ON last_change.place = c.place
) AS w ON w.item_key = b.item_key
LEFT JOIN tombstones AS t ON t.item_key = w.item_key
WHERE (b.item_key IS NULL OR w.order_key > b.order_key)
  AND (t.item_key IS NULL OR w.order_key >= t.order_key)
