-- description: Customers, their orders and what they were worth, by customer segment.
SELECT
    c.segment,
    COUNT(DISTINCT c.customer_id) AS customers,
    COUNT(o.order_id) AS orders,
    COALESCE(SUM(o.total), 0) AS revenue
FROM customers.current_state AS c
LEFT JOIN orders.current_state AS o ON o.customer_id = c.customer_id
GROUP BY c.segment
ORDER BY c.segment
