-- Where the last change of every item stands among `changes`: keys and items are large.
-- changes(item_key, order_key, op, item, write_time_us, place): `place` is another one for every
-- row, by which the change is found again. Duplicates are harmless.
SELECT MAX_BY(place, order_key) AS place
FROM changes
GROUP BY item_key
