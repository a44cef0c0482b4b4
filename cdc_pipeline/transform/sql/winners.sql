-- The last change of every item among `changes`, without the item: tables of items are large.
-- changes(item_key, order_key, op, item, write_time_us, place): `place` is another one for every
-- row, by which the item is found again. Duplicates are harmless.
SELECT c.item_key, c.order_key, c.op, c.write_time_us, c.place
FROM changes AS c
JOIN (
    SELECT MAX_BY(place, order_key) AS place
    FROM changes
    GROUP BY item_key
) AS last_change
    ON c.place = last_change.place
