-- Items deleted by TTL, each with its last image: the delete's own old image, or else the latest of
-- `images` before it (item NULL: the item was deleted before, or its image is unknown).
-- expired(keys, time_stamp, order_key, old_image); images(keys, order_key, item).
SELECT keys, expired_at, order_key, item
FROM (
    SELECT
        e.keys, e.time_stamp AS expired_at, e.order_key, COALESCE(e.old_image, i.item) AS item,
        ROW_NUMBER() OVER (
            PARTITION BY e.keys, e.order_key ORDER BY i.order_key DESC
        ) AS recency
    FROM expired AS e
    LEFT JOIN images AS i
        ON i.keys = e.keys AND i.order_key < e.order_key AND e.old_image IS NULL
) AS numbered
WHERE recency = 1
ORDER BY keys, order_key
