import json

import pytest
from measured_cells import RECORDS

from ersde_lit.sweeps.cells import Cells


def test_records_are_kept_in_the_order_of_measurement(tmp_path):
    store = Cells(tmp_path)
    for record in RECORDS:
        store.add(record)
    assert store.read() == RECORDS


@pytest.mark.parametrize("line", ["3", "null", "[1]", "{}", '{"sampler": "a"', json.dumps({"sampler": "a", "nfe": 5})])
def test_a_file_of_something_else_is_said_to_be_damaged(tmp_path, line):
    (tmp_path / "cells.jsonl").write_text(f"{json.dumps(RECORDS[0])}\n{line}\n")
    with pytest.raises(ValueError, match=r"cells.jsonl is damaged"):
        Cells(tmp_path).read()
