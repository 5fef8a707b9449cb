from tlkeras.history import History


def phase(number: int) -> History:
    row = {"phase": "fine-tune", "epoch": 1, "loss": float(number)}
    return History([row], {"fine-tune": number}, {"fine-tune": number}, {"fine-tune": float(number)})


def test_sums_of_phases_do_not_depend_on_the_brackets():
    one, other = (phase(1) + phase(2)) + phase(3), phase(1) + (phase(2) + phase(3))
    assert one == other
    assert one.kept == {"fine-tune": 1, "fine-tune again": 2, "fine-tune again again": 3}
    assert [row["epoch"] for row in one.rows] == [1, 2, 3]
