-- Places of the last change of every item in `changes`; no keys and items, which are large.
-- changes(item_key, order_key, op, item, write_time_us, place): `place` is a unique number of the
-- row, for later joins. Duplicates of changes are harmless.
SELECT MAX_BY(place, order_key) AS place
FROM changes
GROUP BY item_key
