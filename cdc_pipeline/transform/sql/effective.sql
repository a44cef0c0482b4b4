-- Winners that are news: later than the item in `base`, not older than its tombstone.
-- Equal to its tombstone counts: tombstones are committed before the base they belong to.
-- base(item_key, order_key, item, write_time_us, place); `replaces` is the place of the item there.
-- A fold needs places only; keys are there for tombstones: of deletes, and of items that have one.
-- The right side of each join is what an engine had better hold in memory.
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
