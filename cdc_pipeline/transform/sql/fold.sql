-- The state after the effective changes: items they do not touch, and the items they leave.
SELECT b.item_key, b.order_key, b.item, b.write_time_us
FROM base AS b
LEFT JOIN effective AS e ON e.item_key = b.item_key
WHERE e.item_key IS NULL
UNION ALL
SELECT w.item_key, w.order_key, w.item, w.write_time_us
FROM winners AS w
JOIN effective AS e ON e.item_key = w.item_key
WHERE e.op <> 'D'
