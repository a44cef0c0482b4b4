"""CSV files of tables, as spreadsheets and people write them."""

import pytest

from cdc_pipeline.core.plans.table_list import RowProblem, TableRow, read_rows

COLUMNS = ["name", "region", "role_arn", "transport", "owner", "alias"]
ROLE = "arn:aws:iam::123456789012:role/reader"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            "orders\ncustomers\n",
            [TableRow(1, {"name": "orders"}), TableRow(2, {"name": "customers"})],
        ),
        ("orders", [TableRow(1, {"name": "orders"})]),
        (
            f"orders,eu-west-1,{ROLE}\n",
            [TableRow(1, {"name": "orders", "region": "eu-west-1", "role_arn": ROLE})],
        ),
        (
            "\ufeffName;Alias;Region\r\n# mine\r\n\r\norders;sold;\r\n;;\r\n",
            [TableRow(4, {"name": "orders", "alias": "sold"})],
        ),
        (
            'name\towner\n"orders" \tteam:sales\t\n',
            [TableRow(2, {"name": "orders", "owner": "team:sales"})],
        ),
        ("nam,region\n", [TableRow(1, {"name": "nam", "region": "region"})]),
        ("", []),
    ],
)
def test_rows(text: str, rows: list[TableRow]) -> None:
    assert read_rows(text, COLUMNS) == (rows, [])


def test_cells_without_a_column() -> None:
    text = "name,owner\norders,team:sales,extra\ncustomers,team:sales,\n"
    rows, problems = read_rows(text, COLUMNS)
    assert rows == [TableRow(3, {"name": "customers", "owner": "team:sales"})]
    assert problems == [RowProblem(2, "3 cells, but the columns are name, owner")]
