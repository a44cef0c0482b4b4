-- description: Orders changed on a day and what they were worth then, by country and status.
-- partitioned: daily
SELECT
    $day AS day,
    country,
    status,
    COUNT(*) AS orders,
    SUM(total) AS revenue
FROM orders.current_state
WHERE substr(ordered_at, 1, 10) = CAST($day AS VARCHAR(10))
GROUP BY country, status
ORDER BY country, status
