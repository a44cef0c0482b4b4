-- The state after the effective changes: unchanged items, and the items after their changes.
SELECT b.item_key, b.order_key, b.item, b.write_time_us
FROM base AS b
LEFT JOIN effective AS e ON e.replaces = b.place
WHERE e.replaces IS NULL
UNION ALL
SELECT c.item_key, c.order_key, c.item, c.write_time_us
FROM changes AS c
JOIN effective AS e ON e.place = c.place
WHERE e.op <> 'D'
