-- Tombstones after the effective changes: old ones still valid, and new deletes.
SELECT t.item_key, t.order_key, t.write_time_us
FROM tombstones AS t
LEFT JOIN effective AS e ON e.item_key = t.item_key
WHERE e.item_key IS NULL
UNION ALL
SELECT e.item_key, e.order_key, e.write_time_us
FROM effective AS e
WHERE e.op = 'D'
