-- Differences between a baseline and the changes before it: items that differ, are new, or are
-- missing in the baseline. `explained`: items with changes of the baseline's own generation,
-- written before it could be published; those changes contain the difference.
-- earlier(item_key, item), baseline(item_key, item), explained(item_key): one row per item each.
SELECT
    COALESCE(new.item_key, old.item_key) AS keys,
    CASE WHEN new.item IS NULL THEN 'D' WHEN old.item IS NULL THEN 'I' ELSE 'U' END AS op,
    new.item AS new_image,
    old.item AS old_image
FROM earlier AS old
FULL OUTER JOIN baseline AS new ON new.item_key = old.item_key
LEFT JOIN explained AS e ON e.item_key = COALESCE(new.item_key, old.item_key)
WHERE e.item_key IS NULL
  AND (new.item IS NULL OR old.item IS NULL OR new.item <> old.item)
