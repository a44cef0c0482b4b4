-- Neighbouring changes of an item with a break between them: the later one's old image differs from
-- the earlier one's new image, so a change is missing. One row per pair that can be compared.
-- cdc(keys, op, new_image, old_image, order_key, generation, write_time_us), without duplicates.
SELECT
    keys, previous_order_key, order_key, previous_generation, generation,
    previous_write_time_us, write_time_us,
    CASE
        WHEN op = 'I' THEN previous_op <> 'D'
        WHEN previous_op = 'D' THEN TRUE
        ELSE previous_image <> old_image
    END AS is_break
FROM (
    SELECT
        keys, op, old_image, order_key, generation, write_time_us,
        LAG(op) OVER (PARTITION BY keys ORDER BY order_key) AS previous_op,
        LAG(new_image) OVER (PARTITION BY keys ORDER BY order_key) AS previous_image,
        LAG(order_key) OVER (PARTITION BY keys ORDER BY order_key) AS previous_order_key,
        LAG(generation) OVER (PARTITION BY keys ORDER BY order_key) AS previous_generation,
        LAG(write_time_us) OVER (PARTITION BY keys ORDER BY order_key) AS previous_write_time_us
    FROM cdc
) AS neighbours
WHERE previous_order_key IS NOT NULL
  AND (op = 'I' OR previous_op = 'D' OR (previous_image IS NOT NULL AND old_image IS NOT NULL))
