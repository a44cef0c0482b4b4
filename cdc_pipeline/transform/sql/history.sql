-- One row per version of an item (SCD2): a version is valid until the item's next change.
-- is_collapsed: known only from a heal or a later baseline, so there may have been other versions
-- between the one before and this one. Rows read again by a heal have no event id, unlike those
-- that complete an event.
SELECT
    keys AS item_key,
    op,
    time_stamp AS valid_from,
    LEAD(time_stamp) OVER (PARTITION BY keys ORDER BY order_key) AS valid_to,
    LEAD(order_key) OVER (PARTITION BY keys ORDER BY order_key) IS NULL AND op <> 'D' AS is_current,
    is_ttl_delete,
    COALESCE(
        transport IN ('export', 'baseline') OR (transport = 'read' AND event_id = ''), FALSE
    ) AS is_collapsed,
    data,
    new_image AS item,
    order_key,
    uuid,
    time_stamp AS write_time
FROM cdc
