-- The last change of every item among `changes`.
-- changes(item_key, order_key, op, item, write_time_us); duplicates are harmless.
SELECT DISTINCT c.item_key, c.order_key, c.op, c.item, c.write_time_us
FROM changes AS c
JOIN (
    SELECT item_key, MAX(order_key) AS order_key
    FROM changes
    GROUP BY item_key
) AS last_change
    ON c.item_key = last_change.item_key AND c.order_key = last_change.order_key
