"""A report for the terminal is a table that can be read."""

from models.evaluate import text_report


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    table = {
        "input": {"psnr_db": 1.5, "setting": None},
        "a long name of a method": {"psnr_db": 22, "setting": "noise=0.1"},
    }
    text = text_report({"model": "toy", "data": "somewhere", "tables": {"methods": table}, "notes": ["A remark."]})
    assert text.splitlines() == [
        "toy on somewhere",
        "",
        "methods                  psnr_db    setting",
        "input                      1.500          –",
        "a long name of a method       22  noise=0.1",
        "",
        "A remark.",
    ]
